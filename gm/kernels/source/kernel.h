// What MindSpore hands to a kernel (`ops.Custom`, func_type "aot"): the memory of its inputs and then of its outputs,
// and their shapes. All numbers are float32.
#pragma once

#include <cstdint>
#include <cstring>

struct Arguments {
  int count;
  void **data;
  int *ranks;
  int64_t **shapes;

  float *operator[](int index) const { return static_cast<float *>(data[index]); }
  int64_t length(int index, int axis) const { return shapes[index][axis]; }
  int rank(int index) const { return ranks[index]; }

  int64_t size(int index) const {
    int64_t product = 1;
    for (int axis = 0; axis < ranks[index]; ++axis) product *= shapes[index][axis];
    return product;
  }
};

inline bool all_float32(int count, const char **types) {
  for (int index = 0; index < count; ++index)
    if (std::strcmp(types[index], "float32") != 0) return false;
  return true;
}

// `KERNEL(name) { ... args ... }` defines what MindSpore calls by this name; it tells other types than float32 by 1.
#define KERNEL(name)                                                                                               \
  static void name##_kernel(const Arguments &args);                                                                \
  extern "C" __attribute__((visibility("default"))) int name(int count, void **data, int *ranks, int64_t **shapes, \
                                                             const char **types, void *, void *) {                 \
    if (!all_float32(count, types)) return 1;                                                                      \
    name##_kernel(Arguments{count, data, ranks, shapes});                                                          \
    return 0;                                                                                                      \
  }                                                                                                                \
  static void name##_kernel(const Arguments &args)
