// What a step does with hundreds of tensors at once: sums of squares, optimizers, averages. Each is one kernel over all
// of them, whose chunks do not end where a tensor does, so small ones take no longer than their numbers do.

#include <cmath>
#include <vector>

#include "kernel.h"
#include "sums.h"
#include "threads.h"

namespace {

// body(tensor, first, last, chunk) over the numbers of `tensors` inputs from `from` on, chunk by chunk.
template <class F>
void over_all(const Arguments &args, int from, int tensors, F &&body) {
  std::vector<int64_t> ends(tensors);
  int64_t total = 0;
  for (int index = 0; index < tensors; ++index) ends[index] = total += args.size(from + index);
  parallel(total, 1, [&](int64_t first, int64_t last, int64_t chunk) {
    int index = static_cast<int>(std::upper_bound(ends.begin(), ends.end(), first) - ends.begin());
    while (first < last) {
      const int64_t begin = index ? ends[index - 1] : 0, end = std::min(last, ends[index]);
      if (first < end) body(index, first - begin, end - begin, chunk);
      first = end, ++index;
    }
  });
}

// The same where the body changes inputs: MindSpore wants an output of every kernel, here a number nobody reads.
template <class F>
void change_all(const Arguments &args, int from, int tensors, F &&body) {
  over_all(args, from, tensors, [&](int index, int64_t first, int64_t last, int64_t) { body(index, first, last); });
  args[args.count - 1][0] = 0.0f;
}

}  // namespace

// n tensors -> (n): the sum of squares of each, in float64 over pieces
KERNEL(square_sums) {
  const int tensors = args.count - 1;
  float *sums = args[tensors];
  std::vector<int64_t> starts(tensors + 1, 0);
  for (int index = 0; index < tensors; ++index) starts[index + 1] = starts[index] + args.size(index);
  // What a chunk has of a tensor; a tensor's parts are in chunks one after the other, and each chunk begins another.
  std::vector<double> parts((starts[tensors] + CHUNK - 1) / CHUNK + tensors, 0.0);
  over_all(args, 0, tensors, [&](int index, int64_t first, int64_t last, int64_t chunk) {
    const float *x = args[index];
    parts[chunk + index] = square_sum(x + first, 0.0f, last - first);
  });
  for (int index = 0; index < tensors; ++index) {
    double total = 0.0;
    if (starts[index + 1] > starts[index]) {
      const int64_t last = (starts[index + 1] - 1) / CHUNK;
      for (int64_t chunk = starts[index] / CHUNK; chunk <= last; ++chunk) total += parts[chunk + index];
    }
    sums[index] = static_cast<float>(total);
  }
}

// settings (6): rate, epsilon, beta1, beta2, decay, factor; decays (n); then n weights, n first and n second moments,
// all three changed, and n gradients -> (1). Those that decay are first made less by `decay` of themselves.
// Adam with its bias corrections in rate and epsilon; the gradients count `factor` times.
KERNEL(adamw) {
  const int n = (args.count - 3) / 4;
  const float *settings = args[0], *decays = args[1];
  const float rate = settings[0], epsilon = settings[1], beta1 = settings[2], beta2 = settings[3];
  const float decay = settings[4], factor = settings[5];
  change_all(args, 2, n, [=, &args](int index, int64_t first, int64_t last) {
    float *w = args[2 + index], *m = args[2 + n + index], *v = args[2 + 2 * n + index];
    const float *gradient = args[2 + 3 * n + index], keep = 1.0f - decay * decays[index];
#pragma omp simd
    for (int64_t i = first; i < last; ++i) {
      const float g = gradient[i] * factor;
      m[i] += (g - m[i]) * (1.0f - beta1);
      v[i] += (g * g - v[i]) * (1.0f - beta2);
      w[i] = w[i] * keep - rate * m[i] / (std::sqrt(v[i]) + epsilon);
    }
  });
}

// settings (5): rate, beta1, beta2, decay, factor; decays (n); then n weights and n moments, both changed, and n
// gradients -> (1)
KERNEL(lion) {
  const int n = (args.count - 3) / 3;
  const float *settings = args[0], *decays = args[1];
  const float rate = settings[0], beta1 = settings[1], beta2 = settings[2], decay = settings[3], factor = settings[4];
  change_all(args, 2, n, [=, &args](int index, int64_t first, int64_t last) {
    float *w = args[2 + index], *m = args[2 + n + index];
    const float *gradient = args[2 + 2 * n + index], keep = 1.0f - decay * decays[index];
#pragma omp simd
    for (int64_t i = first; i < last; ++i) {
      const float g = gradient[i] * factor;
      const float mixed = beta1 * m[i] + (1.0f - beta1) * g;
      const float sign = mixed > 0.0f ? 1.0f : mixed < 0.0f ? -1.0f : mixed;
      w[i] = w[i] * keep - rate * sign;
      m[i] = beta2 * m[i] + (1.0f - beta2) * g;
    }
  });
}

// pace (1); then n tensors, which are changed, and n others -> (1): the first go that part of the way to the second
KERNEL(approach) {
  const int n = (args.count - 2) / 2;
  const float pace = args[0][0];
  change_all(args, 1, n, [=, &args](int index, int64_t first, int64_t last) {
    float *x = args[1 + index];
    const float *goal = args[1 + n + index];
#pragma omp simd
    for (int64_t i = first; i < last; ++i) x[i] += pace * (goal[i] - x[i]);
  });
}

// factor (1); then n tensors, which are changed, and n others -> (1): the second are added, times the factor
KERNEL(accumulate) {
  const int n = (args.count - 2) / 2;
  const float factor = args[0][0];
  change_all(args, 1, n, [=, &args](int index, int64_t first, int64_t last) {
    float *x = args[1 + index];
    const float *other = args[1 + n + index];
#pragma omp simd
    for (int64_t i = first; i < last; ++i) x[i] += factor * other[i];
  });
}

// n tensors, which become zero -> (1)
KERNEL(clear) {
  change_all(args, 0, args.count - 1,
             [&](int index, int64_t first, int64_t last) { std::fill(args[index] + first, args[index] + last, 0.0f); });
}
