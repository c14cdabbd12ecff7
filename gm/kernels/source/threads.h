// Work shared out over the cores.
//
// It is cut into chunks whose borders depend on its size alone, so that sums over chunks come out the same, to the bit,
// on any number of cores.
#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t CHUNK = 1 << 14;  // numbers, about, that a core takes at a time: some microseconds

using Body = void (*)(void *context, int64_t chunk);

// Call `body` for each chunk, on this and other cores. The order is not defined.
void run_chunks(int64_t chunks, Body body, void *context);

// How many items of `cost` numbers each a chunk has.
inline int64_t grain(int64_t cost) { return std::max<int64_t>(1, CHUNK / std::max<int64_t>(1, cost)); }

// body(first, last, chunk) over `items` of `cost` numbers each.
template <class F>
void parallel(int64_t items, int64_t cost, F &&body) {
  struct Context {
    F &body;
    int64_t items, step;
  } context{body, items, grain(cost)};
  const Body one = [](void *raw, int64_t chunk) {
    auto &work = *static_cast<Context *>(raw);
    const int64_t first = chunk * work.step;
    work.body(first, std::min(work.items, first + work.step), chunk);
  };
  run_chunks((items + context.step - 1) / context.step, one, &context);
}
