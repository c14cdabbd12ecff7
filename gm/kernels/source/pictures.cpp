// What is done to whole planes of pictures.

#include "kernel.h"
#include "sums.h"
#include "threads.h"

// x (B, C, H, W) -> (B, C, 2 H, 2 W): every pixel twice each way
KERNEL(upsample) {
  const int64_t width = args.length(0, 3), lines = args.size(0) / width;
  const float *x = args[0];
  float *y = args[1];
  parallel(lines, 4 * width, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t line = first; line < last; ++line) {
      const float *in = x + line * width;
      float *upper = y + line * 4 * width, *lower = upper + 2 * width;
      for (int64_t i = 0; i < width; ++i) upper[2 * i] = upper[2 * i + 1] = in[i];
      std::copy(upper, lower, lower);
    }
  });
}

// dy (B, C, 2 H, 2 W) -> dx (B, C, H, W)
KERNEL(upsample_grad) {
  const int64_t width = args.length(1, 3), lines = args.size(1) / width;
  const float *dy = args[0];
  float *dx = args[1];
  parallel(lines, 4 * width, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t line = first; line < last; ++line) {
      const float *upper = dy + line * 4 * width, *lower = upper + 2 * width;
      float *out = dx + line * width;
      for (int64_t i = 0; i < width; ++i) out[i] = upper[2 * i] + upper[2 * i + 1] + lower[2 * i] + lower[2 * i + 1];
    }
  });
}

// x (B, C, H, W), shift (B, C) -> x + shift
KERNEL(channel_shift) {
  const int64_t planes = args.size(1), pixels = args.size(0) / planes;
  const float *x = args[0], *shift = args[1];
  float *y = args[2];
  parallel(planes, pixels, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t plane = first; plane < last; ++plane) {
#pragma omp simd
      for (int64_t i = plane * pixels; i < (plane + 1) * pixels; ++i) y[i] = x[i] + shift[plane];
    }
  });
}

// dy (B, C, H, W) -> dshift (B, C)
KERNEL(channel_shift_grad) {
  const int64_t planes = args.size(1), pixels = args.size(0) / planes;
  const float *dy = args[0];
  float *dshift = args[1];
  parallel(planes, pixels, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t plane = first; plane < last; ++plane)
      dshift[plane] = static_cast<float>(sum(dy + plane * pixels, pixels));
  });
}
