// Where the pixels of one image's map lie: of a whole one, or of a tile that is put together as it is
// read.

template <class T>
class Pixels {
 public:
  // Of image `n` of maps (…, height, width, channels); or of tile `n`, where there are `tiles`.
  Pixels(const void* maps, const PasteCall* tiles, int64_t n, int64_t height, int64_t width,
         int64_t channels)
      : size{height, width}, depth(channels) {
    if (tiles) {
      along[0] = tiles->rows[tiles->row[n]], along[1] = tiles->cols[tiles->col[n]];
      map[0] = tiles->map_h, map[1] = tiles->map_w, crop_w = tiles->crop_w;
      clean = static_cast<const T*>(tiles->clean) + map_index(*tiles, n, 0, 0);
      const int64_t crop = tiles->one_crop ? 0 : n;
      if (tiles->crops)
        crops = static_cast<const T*>(tiles->crops) + crop * tiles->crop_h * crop_w * channels;
    } else {
      map[0] = height, map[1] = width;
      clean = static_cast<const T*>(maps) + n * height * width * channels;
    }
  }

  // Pixels (y, x) … (y + rows - 1, x + cols - 1), `apart` to a row; `none` beyond the border.
  void list(int64_t y, int64_t x, int rows, int cols, const T** to, int apart,
            const T* none) const {
    int64_t down[kMost], across[kMost], crop_down[kMost], crop_across[kMost];
    find(0, y, rows, down, crop_down);
    find(1, x, cols, across, crop_across);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) {
        const T*& found = to[i * apart + j];
        if (crop_down[i] >= 0 && crop_across[j] >= 0)
          found = crops + (crop_down[i] * crop_w + crop_across[j]) * depth;
        else if (down[i] >= 0 && across[j] >= 0)
          found = clean + (down[i] * map[1] + across[j]) * depth;
        else
          found = none;
      }
  }

 private:
  static constexpr int kMost = 9;  // pixels along a line
  const T *clean, *crops = nullptr;
  int64_t size[2], map[2];  // heights and widths: of the tile, of the map
  int64_t depth, crop_w = 0;
  Along along[2] = {};

  // Where pixels of the tile from `first` on lie on the map and on the crop; −1 where they do not.
  void find(int axis, int64_t first, int count, int64_t* of_map, int64_t* of_crop) const {
    const Along& line = along[axis];
    for (int i = 0; i < count; ++i) {
      const int64_t at = first + i, place = line.start + at;
      const bool inside = at >= 0 && at < size[axis] && place >= 0 && place < map[axis];
      of_map[i] = inside ? place : -1;
      of_crop[i] = inside && crops && covers(line, place) ? place - line.from : -1;
    }
  }
};
