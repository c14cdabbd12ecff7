// Convolutions with square kernels, stride 1 and the padding that keeps the size of a picture.
//
// A picture's channels are copied to where there is a margin around them. There the lines of a picture follow each
// other with the margin between, so what one place of the kernel sees of many pixels in a row is a row of numbers,
// wherever it begins: the product of kernels and pictures reads them from there, and no ninefold picture exists. What
// it computes for the margins is thrown away.

#include <vector>

#include "kernel.h"
#include "product.h"
#include "sums.h"
#include "threads.h"

namespace {

constexpr int64_t PANEL = 128;       // pixels, about, of whole lines, that are computed at once
constexpr int64_t CHANNELS = 32;     // of which so many channels are copied at a time
constexpr int64_t RESULT = 1 << 14;  // numbers, about, that one core makes of them

struct Pictures {
  int64_t batch, channels, height, width;

  int64_t pixels() const { return height * width; }
  int64_t size() const { return channels * pixels(); }
};

Pictures pictures_of(const Arguments &args, int index) {
  return Pictures{args.length(index, 0), args.length(index, 1), args.length(index, 2), args.length(index, 3)};
}

// Lines of pictures with their margins, for kernels of `side`.
struct Panel {
  int64_t side, width, height, lines;

  int64_t reach() const { return side / 2; }
  int64_t line() const { return width + 2 * reach(); }            // with its margin
  int64_t count() const { return lines * line() - 2 * reach(); }  // from the first pixel to the last, margins between
  int64_t plane() const { return (lines + 2 * reach()) * line(); }
  int64_t offset(int64_t place) const { return place / side * line() + place % side; }  // of what a kernel's place sees
};

Panel panel_of(const Pictures &of, int64_t side) {
  return Panel{side, of.width, of.height, std::min(of.height, std::max<int64_t>(1, PANEL / of.width))};
}

// `channels` planes of a picture, lines from `first` on and those around them, zeros outside -> (channels, plane)
void copy(const float *planes, const Panel &panel, int64_t channels, int64_t first, float *out) {
  const int64_t reach = panel.reach(), width = panel.width;
  for (int64_t channel = 0; channel < channels; ++channel, planes += panel.height * width) {
    for (int64_t y = first - reach; y < first + panel.lines + reach; ++y, out += panel.line()) {
      if (y < 0 || y >= panel.height) {
        std::fill(out, out + panel.line(), 0.0f);
        continue;
      }
      for (int64_t x = 0; x < reach; ++x) out[x] = 0.0f, out[reach + width + x] = 0.0f;
      const float *from = planes + y * width;
      float *to = out + reach;
      for (int64_t x = 0; x < width; ++x) to[x] = from[x];
    }
  }
}

// x (B, C, H, W), kernels (outputs, C * places), bias (outputs) or none -> y (B, outputs, H, W)
void convolve(const float *x, const Pictures &of, const float *kernels, const float *bias, int64_t side,
              int64_t outputs, float *y) {
  const Panel panel = panel_of(of, side);
  const int64_t places = side * side, depth = of.channels * places;
  const int64_t panels = (of.height + panel.lines - 1) / panel.lines;
  const int64_t row = padded(panel.count());
  const int64_t share = std::min(outputs, std::max<int64_t>(TALL, RESULT / row / TALL * TALL));
  const int64_t shares = (outputs + share - 1) / share;
  const int64_t cost = panel.count() * depth * share / 16;
  parallel(of.batch * panels * shares, cost, [=](int64_t from, int64_t to, int64_t) {
    // What is computed beyond the last pixel is read from beyond the last plane.
    float *planes = scratch<0>(CHANNELS * panel.plane() + WIDE), *result = scratch<1>(share * row);
    std::vector<int64_t> seen(CHANNELS * places);  // where the first pixel sees each channel and place
    for (int64_t i = 0; i < CHANNELS * places; ++i) seen[i] = i / places * panel.plane() + panel.offset(i % places);
    const int64_t *offsets = seen.data();
    for (int64_t item = from; item < to; ++item) {
      const int64_t output = item % shares * share, first = item / shares % panels * panel.lines;
      const int64_t picture = item / shares / panels, made = std::min(share, outputs - output);
      for (int64_t channel = 0; channel < of.channels; channel += CHANNELS) {
        const int64_t channels = std::min(CHANNELS, of.channels - channel);
        const float *weights = kernels + output * depth + channel * places;
        copy(x + picture * of.size() + channel * of.pixels(), panel, channels, first, planes);
        for (int64_t j = 0; j < row; j += WIDE) {
          const auto left = [=](int64_t i) { return weights + i * depth; };
          const auto right = [=](int64_t inner) { return planes + offsets[inner] + j; };
          strip(made, panel.count() - j, channels * places, left, 1, right, result + j, row, channel > 0);
        }
      }
      for (int64_t i = 0; i < made; ++i) {
        const float b = bias ? bias[output + i] : 0.0f;
        for (int64_t line = 0; line < std::min(panel.lines, of.height - first); ++line) {
          const float *in = result + i * row + line * panel.line();
          float *out = y + (picture * outputs + output + i) * of.pixels() + (first + line) * of.width;
#pragma omp simd
          for (int64_t j = 0; j < of.width; ++j) out[j] = in[j] + b;
        }
      }
    }
  });
}

}  // namespace

// x (B, C, H, W), kernels (out, C, k, k), bias (out) -> (B, out, H, W)
KERNEL(convolution) {
  convolve(args[0], pictures_of(args, 0), args[1], args[2], args.length(1, 2), args.length(1, 0), args[3]);
}

// dy (B, out, H, W), kernels (out, C, k, k) -> dx (B, C, H, W): a convolution with the kernels turned around
KERNEL(convolution_grad_input) {
  const int64_t outputs = args.length(1, 0), channels = args.length(1, 1), side = args.length(1, 2);
  const int64_t places = side * side;
  const float *kernels = args[1];
  std::vector<float> turned(outputs * channels * places);
  float *rows = turned.data();
  constexpr int64_t SOME = 16;  // channels, which lie side by side in what is read
  parallel((channels + SOME - 1) / SOME, SOME * outputs * places, [=](int64_t from, int64_t to, int64_t) {
    for (int64_t first = from * SOME; first < std::min(channels, to * SOME); first += SOME)
      for (int64_t output = 0; output < outputs; ++output)
        for (int64_t channel = first; channel < std::min(channels, first + SOME); ++channel)
          for (int64_t place = 0; place < places; ++place)
            rows[(channel * outputs + output) * places + place] =
                kernels[(output * channels + channel) * places + places - 1 - place];
  });
  convolve(args[0], pictures_of(args, 0), rows, nullptr, side, channels, args[2]);
}

// dy (B, out, H, W), x (B, C, H, W), kernels (out, C, k, k) -> dkernels (out, C, k, k), dbias (out)
KERNEL(convolution_grad_kernels) {
  const Pictures of = pictures_of(args, 1);
  const int64_t outputs = args.length(0, 1), side = args.length(2, 2), places = side * side, pixels = of.pixels();
  const float *dy = args[0], *x = args[1];
  float *dkernels = args[3], *dbias = args[4];
  const Panel panel = panel_of(of, side);
  const int64_t depth = of.channels * places, panels = (of.height + panel.lines - 1) / panel.lines;
  const int64_t count = panel.count(), wide = padded(outputs);
  // The slopes of each panel with their channels side by side, and zeros for the margins, once for all.
  std::vector<float> packed(of.batch * panels * count * wide);
  float *slopes = packed.data();
  parallel(of.batch * panels, outputs * count, [=](int64_t from, int64_t to, int64_t) {
    float *spread = scratch<0>(outputs * count);
    for (int64_t item = from; item < to; ++item) {
      const int64_t first = item % panels * panel.lines, picture = item / panels;
      std::fill(spread, spread + outputs * count, 0.0f);
      for (int64_t output = 0; output < outputs; ++output)
        for (int64_t line = 0; line < std::min(panel.lines, of.height - first); ++line) {
          const float *in = dy + (picture * outputs + output) * pixels + (first + line) * of.width;
          std::copy(in, in + of.width, spread + output * count + line * panel.line());
        }
      pack(spread, count, outputs, 1, count, slopes + item * count * wide);
    }
  });
  parallel(outputs, of.batch * pixels, [=](int64_t first, int64_t last, int64_t) {
    for (int64_t output = first; output < last; ++output) {
      double total = 0.0;
      for (int64_t picture = 0; picture < of.batch; ++picture) {
        total += sum(dy + (picture * outputs + output) * pixels, pixels);
      }
      dbias[output] = static_cast<float>(total);
    }
  });
  // Some channels at a time: of each, what all pixels of all pictures see, times their slopes.
  constexpr int64_t SOME = 8;
  const int64_t shares = (of.channels + SOME - 1) / SOME;
  parallel(shares, of.batch * panels * count * SOME * places * outputs / 16, [=](int64_t from, int64_t to, int64_t) {
    float *planes = scratch<0>(SOME * panel.plane()), *sums = scratch<1>(SOME * places * wide);
    for (int64_t share = from; share < to; ++share) {
      const int64_t channel = share * SOME, channels = std::min(SOME, of.channels - channel), rows = channels * places;
      for (int64_t item = 0; item < of.batch * panels; ++item) {
        copy(x + item / panels * of.size() + channel * pixels, panel, channels, item % panels * panel.lines, planes);
        const auto left = [=](int64_t i) { return planes + i / places * panel.plane() + panel.offset(i % places); };
        for (int64_t j = 0; j < wide; j += WIDE) {
          const float *columns = slopes + item * count * wide + j * count;
          const auto right = [=](int64_t inner) { return columns + inner * WIDE; };
          strip(rows, outputs - j, count, left, 1, right, sums + j, wide, item > 0);
        }
      }
      for (int64_t output = 0; output < outputs; ++output)
        for (int64_t i = 0; i < rows; ++i) dkernels[output * depth + channel * places + i] = sums[i * wide + output];
    }
  });
}
