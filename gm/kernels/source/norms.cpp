// Layer and group normalisation, and their gradients. Means and variances are taken in two passes over what lies in
// the cache, so they do not cancel.

#include <cmath>
#include <vector>

#include "functions.h"
#include "kernel.h"
#include "sums.h"
#include "threads.h"

namespace {

float mean_of(const float *x, int64_t count) { return static_cast<float>(sum(x, count) / count); }

// 1 / standard deviation
float scale_of(const float *x, float mean, float eps, int64_t count) {
  return 1.0f / std::sqrt(static_cast<float>(square_sum(x, mean, count) / count) + eps);
}

}  // namespace

// x (..., C), weight (C), bias (C), eps (1) -> y (..., C), mean (...), 1 / standard deviation (...)
KERNEL(layer_norm) {
  const int64_t width = args.size(1), rows = args.size(0) / width;
  const float *x = args[0], *weight = args[1], *bias = args[2], eps = args[3][0];
  float *y = args[4], *mean = args[5], *scale = args[6];
  parallel(rows, width, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const float *in = x + row * width;
      float *out = y + row * width;
      const float m = mean_of(in, width);
      const float s = scale_of(in, m, eps, width);
      mean[row] = m, scale[row] = s;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[i] = (in[i] - m) * s * weight[i] + bias[i];
    }
  });
}

// dy (..., C), x (..., C), weight (C), mean (...), scale (...) -> dx (..., C), dweight (C), dbias (C)
KERNEL(layer_norm_grad) {
  const int64_t width = args.size(2), rows = args.size(1) / width;
  const float *dy = args[0], *x = args[1], *weight = args[2], *mean = args[3], *scale = args[4];
  float *dx = args[5], *dweight = args[6], *dbias = args[7];
  // Each chunk adds up its rows, and the chunks are added in their order.
  const int64_t chunks = (rows + grain(width) - 1) / grain(width);
  std::vector<float> parts(chunks * 2 * width);
  float *sums = parts.data();
  parallel(rows, width, [=](int64_t first, int64_t last, int64_t chunk) {
    float *by_weight = sums + chunk * 2 * width, *by_bias = by_weight + width;
    for (int64_t row = first; row < last; ++row) {
      const float *in = x + row * width, *slope = dy + row * width;
      float *out = dx + row * width;
      const float m = mean[row], s = scale[row];
      float plain = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : plain, along)
      for (int64_t i = 0; i < width; ++i) {
        const float g = slope[i] * weight[i], standard = (in[i] - m) * s;
        plain += g, along += g * standard;
        by_weight[i] += slope[i] * standard, by_bias[i] += slope[i];
      }
      plain /= width, along /= width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[i] = s * (slope[i] * weight[i] - plain - (in[i] - m) * s * along);
    }
  });
  std::fill(dweight, dweight + width, 0.0f);
  std::fill(dbias, dbias + width, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float *by_weight = sums + chunk * 2 * width, *by_bias = by_weight + width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) dweight[i] += by_weight[i], dbias[i] += by_bias[i];
  }
}

namespace {

template <bool with_silu>
void group_norm_forward(const Arguments &args) {
  const int64_t batch = args.length(0, 0), channels = args.length(0, 1);
  const int64_t pixels = args.size(0) / (batch * channels);
  const int64_t groups = args.length(5, 1), members = channels / groups, count = members * pixels;
  const float *x = args[0], *weight = args[1], *bias = args[2], eps = args[3][0];
  float *y = args[4], *mean = args[5], *scale = args[6];
  parallel(batch * groups, count, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t group = first; group < last; ++group) {
      const float m = mean_of(x + group * count, count);
      const float s = scale_of(x + group * count, m, eps, count);
      mean[group] = m, scale[group] = s;
      for (int64_t member = 0; member < members; ++member) {
        const int64_t channel = group % groups * members + member;
        const float *in = x + group * count + member * pixels;
        float *out = y + group * count + member * pixels;
        const float w = weight[channel] * s, b = bias[channel];
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
          const float z = (in[i] - m) * w + b;
          out[i] = with_silu ? z * sigmoid(z) : z;
        }
      }
    }
  });
}

template <bool with_silu>
void group_norm_backward(const Arguments &args) {
  const int64_t batch = args.length(1, 0), channels = args.length(1, 1);
  const int64_t pixels = args.size(1) / (batch * channels);
  const int64_t groups = args.length(4, 1), members = channels / groups, count = members * pixels;
  const float *dy = args[0], *x = args[1], *weight = args[2], *bias = args[3], *mean = args[4], *scale = args[5];
  float *dx = args[6], *dweight = args[7], *dbias = args[8];
  std::vector<float> parts(2 * batch * channels);  // of each picture's channels
  float *by_weight = parts.data(), *by_bias = by_weight + batch * channels;
  parallel(batch * groups, count, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t group = first; group < last; ++group) {
      const float m = mean[group], s = scale[group];
      double plain = 0.0, along = 0.0;
      for (int64_t member = 0; member < members; ++member) {
        const int64_t channel = group % groups * members + member, place = group * count + member * pixels;
        const float *in = x + place, *slope = dy + place;
        float *out = dx + place;  // for now the gradient of what is before the SiLU
        const float w = weight[channel], b = bias[channel];
        float plain_here = 0.0f, along_here = 0.0f;
#pragma omp simd reduction(+ : plain_here, along_here)
        for (int64_t i = 0; i < pixels; ++i) {
          const float standard = (in[i] - m) * s;
          float g = slope[i];
          if (with_silu) {
            const float z = standard * w + b, open = sigmoid(z);
            g *= open * (1.0f + z * (1.0f - open));
          }
          out[i] = g;
          plain_here += g, along_here += g * standard;
        }
        by_weight[group * members + member] = along_here, by_bias[group * members + member] = plain_here;
        plain += w * plain_here, along += w * along_here;
      }
      const float p = static_cast<float>(plain / count), a = static_cast<float>(along / count);
      for (int64_t member = 0; member < members; ++member) {
        const int64_t channel = group % groups * members + member, place = group * count + member * pixels;
        const float *in = x + place;
        float *out = dx + place;
        const float w = weight[channel];
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) out[i] = s * (out[i] * w - p - (in[i] - m) * s * a);
      }
    }
  });
  for (int64_t channel = 0; channel < channels; ++channel) {
    float w = 0.0f, b = 0.0f;
    for (int64_t picture = 0; picture < batch; ++picture) {
      w += by_weight[picture * channels + channel], b += by_bias[picture * channels + channel];
    }
    dweight[channel] = w, dbias[channel] = b;
  }
}

}  // namespace

// x (B, C, H, W), weight (C), bias (C), eps (1) -> y (B, C, H, W), mean (B, groups), 1 / standard deviation (B, groups)
KERNEL(group_norm) { group_norm_forward<false>(args); }
KERNEL(group_norm_silu) { group_norm_forward<true>(args); }

// dy, x (B, C, H, W), weight (C), bias (C), mean (B, groups), scale (B, groups) -> dx (B, C, H, W), dweight, dbias (C)
KERNEL(group_norm_grad) { group_norm_backward<false>(args); }
KERNEL(group_norm_silu_grad) { group_norm_backward<true>(args); }
