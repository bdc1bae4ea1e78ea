// Attention: softmax(scale·q·kᵀ)·v for each head of each image, without a mask.
#pragma once
#include "common.h"

namespace sdsgsm {

// Where the tokens of one head of one image are; the values of a token lie together.
struct Tokens {
  const void* data;
  int64_t batch, head, token;  // values from one to the next
};

// Tensors are float or bfloat16; sums are float.
struct AttentionCall {
  Tokens query, key, value;  // (batch, heads, queries or keys, size or width)
  void* out;                 // (batch, queries, heads, width) in memory
  int64_t batch, heads, queries, keys;
  int64_t size, width;  // values of a query or key, and of a value
  float scale;
  DType type;
};

}  // namespace sdsgsm
