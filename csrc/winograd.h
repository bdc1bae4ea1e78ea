// A 3×3 convolution by Winograd's products, with all that follows it in one pass: with stride 1 by
// F(2×2, 3×3) or F(4×4, 3×3), with stride 2 by tiles of 4×4 outputs from 9×9 inputs; at the end of a
// map by tiles of what is left.
#pragma once
#include "common.h"
#include "paste.h"

namespace sdsgsm {

// Outputs whose weights lie together; the last panel is filled up with zeros.
constexpr int64_t kPanel = 64;

// relu(convolution(x) + bias + other). Maps and packed weights are float, or all are bfloat16 and
// sums are float. Maps are channels_last: (N, H, W, C) in memory. Instead of `x` and `other` there may
// be tiles, which are put together as they are read: `out` and `pad` of those calls say nothing,
// zeros are beyond the border.
struct WinogradCall {
  const void* x;        // (batch, in_h, in_w, channels)
  const void* weight;   // as winograd_pack() gives them
  const float* bias;    // (outputs,); null: zero
  const void* other;    // as `out`; null: zero
  void* out;            // (batch, out_h, out_w, outputs)
  int64_t batch, channels, outputs, in_h, in_w, out_h, out_w;
  int64_t above, before;  // rows and columns of zeros ahead of the input
  int64_t points;         // products a tile and line: 4 or 6, or 9 for stride 2
  bool relu;
  const PasteCall* tiles;   // instead of `x`, or null
  const PasteCall* others;  // instead of `other`, or null
};

// The transformed weights G·g·Gᵀ that such a call takes.
struct WinogradPackCall {
  const float* weight;  // (outputs, channels, 3, 3)
  void* out;            // (panels, points², channels, kPanel); bfloat16: (…, ⌈channels/2⌉, kPanel, 2)
  int64_t outputs, channels, points;
};

}  // namespace sdsgsm
