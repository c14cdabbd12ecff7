// Products of matrices that fit the caches, as parts of larger kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// A tile of the result, 8 rows of two vectors, stays in registers while it is summed up.
constexpr int TALL = 8;
constexpr int WIDE = 2 * LANES;
constexpr int64_t DEEP = 256;  // terms of a sum whose right factors stay in the first cache

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

inline const Vector &at(const float *place) { return *reinterpret_cast<const Vector *>(place); }
inline Vector &at(float *place) { return *reinterpret_cast<Vector *>(place); }

// The length of a row of `count` numbers in whole tiles.
inline int64_t padded(int64_t count) { return (count + WIDE - 1) / WIDE * WIDE; }

// Memory of this thread for intermediate results, one block for each `Slot`; its numbers are whatever they were.
template <int Slot>
float *scratch(int64_t count) {
  thread_local std::vector<float> room;
  if (static_cast<int64_t>(room.size()) < count) room.resize(count);
  return room.data();
}

// c (ROWS, VECTORS) = [c +] a (ROWS, k) b (k, VECTORS). left(i) is where row i of a begins, its numbers `step` apart;
// right(inner) where row `inner` of b does.
template <int ROWS, int VECTORS, class Left, class Right>
inline void tile(int64_t k, Left &&left, int64_t step, Right &&right, float *c, int64_t c_row, bool add) {
  Vector sums[ROWS][VECTORS];
  const float *rows[ROWS];
  for (int i = 0; i < ROWS; ++i) {
    rows[i] = left(i);
    for (int j = 0; j < VECTORS; ++j) sums[i][j] = add ? at(c + i * c_row + j * LANES) : Vector{};
  }
  for (int64_t inner = 0; inner < k; ++inner) {
    const float *b = right(inner);
    Vector columns[VECTORS];
    for (int j = 0; j < VECTORS; ++j) columns[j] = at(b + j * LANES);
    for (int i = 0; i < ROWS; ++i) {
      const float a = rows[i][inner * step];
      for (int j = 0; j < VECTORS; ++j) sums[i][j] += a * columns[j];
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < VECTORS; ++j) at(c + i * c_row + j * LANES) = sums[i][j];
}

template <int VECTORS, class Left, class Right>
inline void rows(int64_t m, int64_t k, Left &&left, int64_t step, Right &&right, float *c, int64_t c_row, bool add) {
  int64_t i = 0;
  const auto below = [&](int64_t row) { return left(i + row); };
  for (; i + TALL <= m; i += TALL) tile<TALL, VECTORS>(k, below, step, right, c + i * c_row, c_row, add);
  if (m - i >= 4) tile<4, VECTORS>(k, below, step, right, c + i * c_row, c_row, add), i += 4;
  if (m - i >= 2) tile<2, VECTORS>(k, below, step, right, c + i * c_row, c_row, add), i += 2;
  if (m - i >= 1) tile<1, VECTORS>(k, below, step, right, c + i * c_row, c_row, add);
}

// The same of any number of rows, and of `width` columns, WIDE at most.
template <class Left, class Right>
inline void strip(int64_t m, int64_t width, int64_t k, Left &&left, int64_t step, Right &&right, float *c,
                  int64_t c_row, bool add) {
  if (width > LANES)
    rows<2>(m, k, left, step, right, c, c_row, add);
  else
    rows<1>(m, k, left, step, right, c, c_row, add);
}

// b (k, n), its rows `row` numbers apart and its columns `step`, as strips (n / WIDE, k, WIDE), with zeros behind n
inline void pack(const float *b, int64_t k, int64_t n, int64_t row, int64_t step, float *out) {
  for (int64_t j = 0; j < n; j += WIDE, out += k * WIDE) {
    const int64_t width = std::min<int64_t>(WIDE, n - j);
    const float *from = b + j * step;
    if (step == 1) {
      for (int64_t inner = 0; inner < k; ++inner) {
        for (int64_t l = 0; l < width; ++l) out[inner * WIDE + l] = from[inner * row + l];
        for (int64_t l = width; l < WIDE; ++l) out[inner * WIDE + l] = 0.0f;
      }
      continue;
    }
    constexpr int64_t BLOCK = 16;  // both sides stay in the first cache
    for (int64_t first = 0; first < k; first += BLOCK) {
      const int64_t last = std::min(k, first + BLOCK);
      for (int64_t l = 0; l < WIDE; ++l)
        for (int64_t inner = first; inner < last; ++inner)
          out[inner * WIDE + l] = l < width ? from[inner * row + l * step] : 0.0f;
    }
  }
}

// c (m, n) = [c +] a (m, k) b (k, n), b as `pack` leaves it. Rows of a are `row` numbers apart and its columns `step`;
// those of c have room for whole tiles.
inline void product(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t step, const float *b,
                    float *c, int64_t c_row, bool add) {
  for (int64_t from = 0; from < k; from += DEEP) {
    const int64_t depth = std::min(DEEP, k - from);
    for (int64_t j = 0; j < n; j += WIDE) {
      const float *columns = b + j * k + from * WIDE;
      const auto left = [=](int64_t i) { return a + i * row + from * step; };
      const auto right = [=](int64_t inner) { return columns + inner * WIDE; };
      strip(m, n - j, depth, left, step, right, c + j, c_row, add || from > 0);
    }
  }
}
