// Tiles of maps with a window's crop pasted in: where each value comes from.
#pragma once
#include "common.h"

namespace sdsgsm {

// One axis of a tile: it starts at `start` of the map, and [from, to) of the map is the crop's.
struct Along {
  int32_t start, from, to;
};

// Maps and tiles are channels_last: (N, H, W, C) in memory.
struct PasteCall {
  const void* clean;  // (B, map_h, map_w, C)
  const void* crops;  // (tiles or 1, crop_h, crop_w, C); null where nothing is pasted
  void* out;          // (tiles, tile_h, tile_w, C)
  const int32_t *image, *row, *col;  // (tiles,): image of `clean`, entries of `rows` and `cols`
  const Along *rows, *cols;
  int64_t tiles, channels, map_h, map_w, crop_h, crop_w, tile_h, tile_w;
  bool one_crop;  // the same crop for all tiles
  double pad;     // value beyond the map's border
  DType type;
};

// Index of a crop's value for position (y, x) of the map, which the crop covers.
SDSGSM_HD int64_t crop_index(const PasteCall& call, int64_t tile, const Along& row,
                             const Along& col, int64_t y, int64_t x) {
  const int64_t crop = call.one_crop ? 0 : tile;
  return ((crop * call.crop_h + y - row.from) * call.crop_w + x - col.from) * call.channels;
}

SDSGSM_HD int64_t map_index(const PasteCall& call, int64_t tile, int64_t y, int64_t x) {
  return ((call.image[tile] * call.map_h + y) * call.map_w + x) * call.channels;
}

SDSGSM_HD bool covers(const Along& along, int64_t at) { return at >= along.from && at < along.to; }

}  // namespace sdsgsm
