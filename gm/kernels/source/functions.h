// Functions of one number in float32, without branches, so that the compiler makes vector code of loops over them.
#pragma once

#include <cstdint>
#include <cstring>

// e^x to 2 units in the last place, within what float32 has normal numbers for; not a number stays that.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // x = n ln 2 + r; adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// The normal distribution at x: its integral up to there, to 1e-7, and `density`.
//
// erfc(t) = k P(k) exp(-t^2) with k = 1/(1 + 0.4 t), as in Abramowitz and Stegun, 7.1.26, with P of degree 8 by least
// squares of the relative error over t in [0, 12].
inline float normal(float x, float *density) {
  const float t = (x < 0.0f ? -x : x) * 0.70710678f;
  const float e = exponential(-0.5f * x * x);
  const float k = 1.0f / (1.0f + 0.4f * t);
  float p = 0.04499892808678776f;
  p = p * k - 0.15831904500861335f;
  p = p * k + 0.12066858509301526f;
  p = p * k + 0.046681408750314915f;
  p = p * k + 0.1077332093650224f;
  p = p * k + 0.18174012884141444f;
  p = p * k + 0.20479220913934423f;
  p = p * k + 0.22604801458988927f;
  p = p * k + 0.2256566452705846f;
  const float tail = 0.5f * p * k * e;
  *density = 0.39894228f * e;
  return x < 0.0f ? tail : 1.0f - tail;
}
