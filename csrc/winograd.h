// A 3×3 convolution by Winograd's F(2×2, 3×3) or F(4×4, 3×3), with all that follows it in one pass.
#pragma once
#include "common.h"

namespace sdsgsm {

// Outputs whose weights lie together; the last panel is filled up with zeros.
constexpr int64_t kPanel = 64;

// relu(convolution(x) + bias + other). Maps are float and channels_last: (N, H, W, C) in memory.
struct WinogradCall {
  const float* x;       // (batch, in_h, in_w, channels)
  const float* weight;  // (panels, (tile + 2)², channels, kPanel): G·g·Gᵀ
  const float* bias;    // (outputs,); null: zero
  const float* other;   // as `out`; null: zero
  float* out;           // (batch, out_h, out_w, outputs)
  int64_t batch, channels, outputs, in_h, in_w, out_h, out_w;
  int64_t above, before;  // rows and columns of zeros ahead of the input
  int64_t tile;           // outputs a tile and line: 2 or 4
  bool relu;
};

// The transformed weights that such a call takes.
struct WinogradPackCall {
  const float* weight;  // (outputs, channels, 3, 3)
  float* out;           // (panels, (tile + 2)², channels, kPanel)
  int64_t outputs, channels, tile;
};

}  // namespace sdsgsm
