// Activations and their gradients, which are computed from what they were given: nothing else is kept.

#include "functions.h"
#include "kernel.h"
#include "threads.h"

// x (..., 2 C) -> y (..., C): the left half times the exact GELU of the right one
KERNEL(gated_gelu) {
  const int64_t width = args.length(1, args.rank(1) - 1), rows = args.size(1) / width;
  const float *x = args[0];
  float *y = args[1];
  parallel(rows, 4 * width, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const float *value = x + row * 2 * width, *gate = value + width;
      float *out = y + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        float density;
        out[i] = value[i] * gate[i] * normal(gate[i], &density);
      }
    }
  });
}

// dy (..., C), x (..., 2 C) -> dx (..., 2 C)
KERNEL(gated_gelu_grad) {
  const int64_t width = args.length(0, args.rank(0) - 1), rows = args.size(0) / width;
  const float *dy = args[0], *x = args[1];
  float *dx = args[2];
  parallel(rows, 4 * width, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const float *value = x + row * 2 * width, *gate = value + width, *slope = dy + row * width;
      float *by_value = dx + row * 2 * width, *by_gate = by_value + width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        float density;
        const float below = normal(gate[i], &density);
        by_value[i] = slope[i] * gate[i] * below;
        by_gate[i] = slope[i] * value[i] * (below + gate[i] * density);
      }
    }
  });
}

// x -> x sigmoid(x)
KERNEL(silu) {
  const float *x = args[0];
  float *y = args[1];
  parallel(args.size(0), 4, [=](int64_t first, int64_t last, int64_t) {
#pragma omp simd
    for (int64_t i = first; i < last; ++i) y[i] = x[i] * sigmoid(x[i]);
  });
}

// dy, x -> dx
KERNEL(silu_grad) {
  const float *dy = args[0], *x = args[1];
  float *dx = args[2];
  parallel(args.size(1), 4, [=](int64_t first, int64_t last, int64_t) {
#pragma omp simd
    for (int64_t i = first; i < last; ++i) {
      const float open = sigmoid(x[i]);
      dx[i] = dy[i] * open * (1.0f + x[i] * (1.0f - open));
    }
  });
}
