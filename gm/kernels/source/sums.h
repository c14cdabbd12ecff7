// Sums of many numbers: in float64 over parts in float32, so that rounding does not add up.
#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t PART = 1024;

inline double sum(const float *x, int64_t count) {
  double all = 0.0;
  for (int64_t first = 0; first < count; first += PART) {
    const int64_t last = std::min(count, first + PART);
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (int64_t i = first; i < last; ++i) part += x[i];
    all += part;
  }
  return all;
}

// of the squares of what x is away from `middle`
inline double square_sum(const float *x, float middle, int64_t count) {
  double all = 0.0;
  for (int64_t first = 0; first < count; first += PART) {
    const int64_t last = std::min(count, first + PART);
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (int64_t i = first; i < last; ++i) part += (x[i] - middle) * (x[i] - middle);
    all += part;
  }
  return all;
}
