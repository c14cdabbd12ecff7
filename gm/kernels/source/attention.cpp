// softmax(q k^T / sqrt(d)) v, head by head, for a block of queries at a time: no more than that block's scores exist,
// and the backward pass computes them again (Dao et al. 2022, arXiv 2205.14135, with whole rows of scores).

#include <cmath>

#include "functions.h"
#include "kernel.h"
#include "product.h"
#include "threads.h"

namespace {

constexpr int64_t SCORES = 1 << 16;  // of a block, 256 KiB
constexpr int64_t QUERIES = 256;     // that one core takes at a time in the forward pass

struct Shape {
  int64_t batch, heads, queries, keys, width;
  bool causal;

  // Heads lie side by side: from one row of a head to the next, and its first rows.
  int64_t step() const { return heads * width; }
  int64_t query(int64_t head) const { return (head / heads * queries * heads + head % heads) * width; }
  int64_t key(int64_t head) const { return (head / heads * keys * heads + head % heads) * width; }
  int64_t row() const { return padded(keys); }  // of scores
  int64_t block() const { return std::min(queries, std::max<int64_t>(TALL, SCORES / row() / TALL * TALL)); }
};

// sizes (3): pictures, heads, causal or not; query (B N, H D), key and value (B M, H D)
Shape shape_of(const Arguments &args, int sizes, int query, int key) {
  Shape shape;
  shape.batch = static_cast<int64_t>(args[sizes][0]), shape.heads = static_cast<int64_t>(args[sizes][1]);
  shape.causal = args[sizes][2] != 0.0f;
  shape.width = args.length(query, 1) / shape.heads;
  shape.queries = args.length(query, 0) / shape.batch, shape.keys = args.length(key, 0) / shape.batch;
  return shape;
}

float largest(const float *x, int64_t count) {
  float most = x[0];
  int64_t i = 0;
  if (count >= LANES) {  // written out: clang makes no vector code of a reduction by max
    Vector found = at(x);
    for (i = LANES; i + LANES <= count; i += LANES) found = at(x + i) > found ? at(x + i) : found;
    for (int lane = 0; lane < LANES; ++lane) most = found[lane] > most ? found[lane] : most;
  }
  for (; i < count; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// The products of `rows` queries from `first` on become weights, of which each row is still to be divided by its sum.
void softmax(float *scores, int64_t rows, int64_t first, const Shape &shape, float scale, float *sums) {
  for (int64_t i = 0; i < rows; ++i) {
    float *line = scores + i * shape.row();
    const int64_t seen = shape.causal ? std::min(shape.keys, first + i + 1) : shape.keys;
    const float most = largest(line, seen);
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < seen; ++j) {
      line[j] = exponential((line[j] - most) * scale);
      total += line[j];
    }
    std::fill(line + seen, line + shape.row(), 0.0f);
    sums[i] = total;
  }
}

// Rows of x (count, width), from where there is room for whole tiles to where they belong, each divided by its sum.
void put(const float *x, int64_t count, int64_t width, const float *sums, float *out, int64_t row) {
  for (int64_t i = 0; i < count; ++i) {
    const float share = sums ? 1.0f / sums[i] : 1.0f;
    const float *from = x + i * padded(width);
    float *line = out + i * row;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) line[j] = from[j] * share;
  }
}

}  // namespace

// query (B N, H D), key, value (B M, H D), sizes (3) -> (B N, H D)
KERNEL(attention) {
  const Shape shape = shape_of(args, 3, 0, 1);
  const float *query = args[0], *key = args[1], *value = args[2];
  float *out = args[4];
  const int64_t row = shape.row(), wide = padded(shape.width), step = shape.step();
  const int64_t parts = (shape.queries + QUERIES - 1) / QUERIES;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.width));
  const int64_t cost = std::min(shape.queries, QUERIES) * shape.keys * shape.width / 16;
  parallel(shape.batch * shape.heads * parts, cost, [=](int64_t from, int64_t to, int64_t) {
    const int64_t block = std::min(shape.block(), QUERIES);
    float *keys = scratch<0>(shape.width * row), *values = scratch<1>(shape.keys * wide);
    float *scores = scratch<2>(block * row), *sums = scratch<3>(block), *mixed = scratch<4>(block * wide);
    for (int64_t item = from; item < to; ++item) {
      const int64_t head = item / parts, begin = item % parts * QUERIES, end = std::min(shape.queries, begin + QUERIES);
      const float *q = query + shape.query(head);
      float *o = out + shape.query(head);
      pack(key + shape.key(head), shape.width, shape.keys, 1, step, keys);
      pack(value + shape.key(head), shape.keys, shape.width, step, 1, values);
      for (int64_t first = begin; first < end; first += block) {
        const int64_t rows = std::min(end - first, block);
        product(rows, shape.keys, shape.width, q + first * step, step, 1, keys, scores, row, false);
        softmax(scores, rows, first, shape, scale, sums);
        product(rows, shape.width, shape.keys, scores, row, 1, values, mixed, wide, false);
        put(mixed, rows, shape.width, sums, o + first * step, step);
      }
    }
  });
}

// dout, query (B N, H D), key, value as above, sizes (3) -> dquery, dkey, dvalue, each as what it is of
KERNEL(attention_grad) {
  const Shape shape = shape_of(args, 4, 1, 2);
  const float *slope = args[0], *query = args[1], *key = args[2], *value = args[3];
  float *dquery = args[5], *dkey = args[6], *dvalue = args[7];
  const int64_t row = shape.row(), block = shape.block(), wide = padded(shape.width);
  const int64_t width = shape.width, step = shape.step();
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  const int64_t cost = shape.queries * shape.keys * width / 8;
  parallel(shape.batch * shape.heads, cost, [=](int64_t from, int64_t to, int64_t) {
    float *keys = scratch<0>(width * row), *values = scratch<1>(width * row);
    float *rows_of_keys = scratch<2>(shape.keys * wide);
    float *weights = scratch<3>(block * row), *slopes = scratch<4>(block * row), *sums = scratch<5>(block);
    float *queries = scratch<6>(block * wide), *outs = scratch<7>(block * wide), *mixed = scratch<8>(block * wide);
    float *by_key = scratch<9>(shape.keys * wide), *by_value = scratch<10>(shape.keys * wide);
    for (int64_t head = from; head < to; ++head) {
      const float *q = query + shape.query(head), *dout = slope + shape.query(head);
      const float *k = key + shape.key(head), *v = value + shape.key(head);
      pack(k, width, shape.keys, 1, step, keys);
      pack(v, width, shape.keys, 1, step, values);
      pack(k, shape.keys, width, step, 1, rows_of_keys);
      for (int64_t first = 0; first < shape.queries; first += block) {
        const int64_t rows = std::min(shape.queries - first, block);
        product(rows, shape.keys, width, q + first * step, step, 1, keys, weights, row, false);
        softmax(weights, rows, first, shape, scale, sums);
        product(rows, shape.keys, width, dout + first * step, step, 1, values, slopes, row, false);
        for (int64_t i = 0; i < rows; ++i) {
          const float share = 1.0f / sums[i];
          float *p = weights + i * row, *ds = slopes + i * row, along = 0.0f;
#pragma omp simd reduction(+ : along)
          for (int64_t j = 0; j < shape.keys; ++j) p[j] *= share, along += p[j] * ds[j];
#pragma omp simd
          for (int64_t j = 0; j < shape.keys; ++j) ds[j] = p[j] * (ds[j] - along) * scale;
        }
        pack(q + first * step, rows, width, step, 1, queries);
        pack(dout + first * step, rows, width, step, 1, outs);
        product(rows, width, shape.keys, slopes, row, 1, rows_of_keys, mixed, wide, false);
        put(mixed, rows, width, nullptr, dquery + shape.query(head) + first * step, step);
        product(shape.keys, width, rows, slopes, 1, row, queries, by_key, wide, first > 0);
        product(shape.keys, width, rows, weights, 1, row, outs, by_value, wide, first > 0);
      }
      put(by_key, shape.keys, width, nullptr, dkey + shape.key(head), step);
      put(by_value, shape.keys, width, nullptr, dvalue + shape.key(head), step);
    }
  });
}
