// Tiles with crops pasted in: each row of a tile is border, map, crop, map, border.

template <class T, class Wide>
struct Paster {
  const PasteCall& call;
  T pad;

  explicit Paster(const PasteCall& c) : call(c) { store(&pad, Wide(c.pad)); }

  // Pixels [from, to) of a row of the tile, which starts at column `left` of the map.
  void border(T* out, int64_t from, int64_t to) const {
    for (int64_t i = from * call.channels; i < to * call.channels; ++i) out[i] = pad;
  }
  void copy(T* out, int64_t from, int64_t to, const T* source) const {
    const int64_t values = (to - from) * call.channels;
    if (values > 0) memcpy(out + from * call.channels, source, size_t(values) * sizeof(T));
  }

  static int64_t clamp(int64_t at, int64_t most) { return at < 0 ? 0 : at < most ? at : most; }

  void tile(int64_t n) const {
    const Along row = call.rows[call.row[n]], col = call.cols[call.col[n]];
    const T* clean = static_cast<const T*>(call.clean);
    const T* crops = static_cast<const T*>(call.crops);
    const int64_t width = call.tile_w, left = col.start;
    const int64_t inside = clamp(-left, width), outside = clamp(call.map_w - left, width);
    T* out = static_cast<T*>(call.out) + n * call.tile_h * width * call.channels;
    for (int64_t i = 0; i < call.tile_h; ++i, out += width * call.channels) {
      const int64_t y = row.start + i;
      if (y < 0 || y >= call.map_h) {
        border(out, 0, width);
        continue;
      }
      border(out, 0, inside);
      border(out, outside, width);
      int64_t from = outside, to = outside;  // of the crop
      if (crops && covers(row, y)) {
        from = clamp(col.from - left, outside);
        to = clamp(col.to - left, outside);
        if (from < inside) from = inside;
        if (to < from) to = from;
        copy(out, from, to, crops + crop_index(call, n, row, col, y, left + from));
      }
      copy(out, inside, from, clean + map_index(call, n, y, left + inside));
      copy(out, to, outside, clean + map_index(call, n, y, left + to));
    }
  }
};

template <class T, class Wide>
void paste_of(const PasteCall& call, int threads) {
  const Paster<T, Wide> paster(call);
  const int64_t values = call.tile_h * call.tile_w * call.channels;
  parallel_for(workers(threads, call.tiles, call.tiles * values), call.tiles,
               [&](int64_t n) { paster.tile(n); });
}

void paste(const PasteCall& call, int threads) {
  switch (call.type) {
    case DType::float64: return paste_of<double, double>(call, threads);
    case DType::float32: return paste_of<float, float>(call, threads);
    case DType::float16: return paste_of<Half, float>(call, threads);
    case DType::bfloat16: return paste_of<BFloat16, float>(call, threads);
  }
}
