// Winograd's F(2×2, 3×3) (Lavin & Gray, CVPR 2016): a tile of 2×2 outputs takes 16 products where
// a convolution takes 36. The 16 transformed inputs of a block of tiles stay in the cache of one
// core, and so do its products with one panel of outputs.
//
// The file that includes this one defines kLanes, the floats of a vector, and kRows and kVecs: the
// sums of kRows tiles by kVecs vectors of outputs fit the registers.

constexpr int64_t kTiles = 96;         // of a block, a multiple of kRows
constexpr int64_t kCached = 2000000;   // floats of a block's transformed inputs
constexpr int64_t kApart = 16;         // floats between planes and rows: else they share cache sets

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

SDSGSM_HD Vec vec(const float* at) { return *reinterpret_cast<const Vec*>(at); }
SDSGSM_HD void put(float* at, Vec value) { *reinterpret_cast<Vec*>(at) = value; }

// Bᵀ·d·B of a 4×4 tile of inputs, in place.
template <class V>
SDSGSM_HD void transform_input(V (&d)[16]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    V *r = d + 4 * i, a = r[0] - r[2], b = r[1] + r[2], c = r[2] - r[1], e = r[1] - r[3];
    r[0] = a, r[1] = b, r[2] = c, r[3] = e;
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    V *r = d + j, a = r[0] - r[8], b = r[4] + r[8], c = r[8] - r[4], e = r[4] - r[12];
    r[0] = a, r[4] = b, r[8] = c, r[12] = e;
  }
}

// Aᵀ·m·A: 4×4 products to 2×2 outputs.
template <class V>
SDSGSM_HD void transform_output(const V (&m)[16], V (&y)[4]) {
  V t[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = m[j] + m[4 + j] + m[8 + j];
    t[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = t[4 * i] + t[4 * i + 1] + t[4 * i + 2];
    y[2 * i + 1] = t[4 * i + 1] - t[4 * i + 2] - t[4 * i + 3];
  }
}

class Winograd {
 public:
  Winograd(const WinogradCall& c, int threads) : call(c) {
    down = (call.out_h + 1) / 2;
    across = (call.out_w + 1) / 2;
    tiles = call.batch * down * across;
    row = (call.channels + 15) / 16 * 16 + kApart;
    const int64_t groups = (tiles + kRows - 1) / kRows;
    team = int(groups < threads ? groups : threads);
    int64_t most = kCached / (16 * row) / kRows * kRows;
    most = most < kRows ? kRows : most > kTiles ? kTiles : most;
    const int64_t rounds = (tiles + team * most - 1) / (team * most);
    block = ((tiles + team * rounds - 1) / (team * rounds) + kRows - 1) / kRows * kRows;
    plane = block * row + kApart;
    result = block * kPanel + kApart;
  }

  void run() const {
    const int64_t blocks = (tiles + block - 1) / block;
    const int64_t own = (16 * (plane + result) + row + 15) / 16 * 16;
    float* scratch = static_cast<float*>(
        ::operator new(size_t(team * own) * sizeof(float), std::align_val_t(64)));
    parallel_for(team, team, [&](int64_t worker) {
      for (int64_t b = blocks * worker / team; b < blocks * (worker + 1) / team; ++b)
        run_block(b * block, scratch + worker * own);
    });
    ::operator delete(scratch, std::align_val_t(64));
  }

 private:
  const WinogradCall& call;
  int64_t down, across, tiles;  // tiles a column, a row, in all
  int64_t block;                // tiles that are worked on at once
  int64_t row;                  // floats from one tile's inputs to the next one's
  int64_t plane, result;        // floats from one of 16 matrices to the next: inputs, products
  int team;

  struct Place {
    int64_t image, y, x;
  };
  Place place(int64_t tile) const {
    const int64_t at = tile % (down * across);
    return {tile / (down * across), at / across * 2, at % across * 2};
  }

  void run_block(int64_t first, float* inputs) const {
    const int64_t count = tiles - first < block ? tiles - first : block;
    const int64_t rows = (count + kRows - 1) / kRows * kRows;
    float *products = inputs + 16 * plane, *zeros = products + 16 * result;
    memset(zeros, 0, size_t(row) * sizeof(float));
    for (int64_t p = 0; p < rows; ++p) gather(first + p, p < count, zeros, inputs + p * row);
    for (int64_t k = 0; k < call.outputs; k += kPanel) {
      const int64_t width = call.outputs - k < kPanel ? call.outputs - k : kPanel;
      const float* weight = call.weight + k * 16 * call.channels;
      for (int i = 0; i < 16; ++i, weight += call.channels * kPanel)
        for (int64_t r = 0; r < rows; r += kRows)
          multiply(inputs + i * plane + r * row, weight, width,
                   products + i * result + r * kPanel);
      for (int64_t p = 0; p < count; ++p) scatter(first + p, k, width, products + p * kPanel);
    }
  }

  // The transformed inputs of a tile; zeros for one that only fills up the rows.
  void gather(int64_t tile, bool exists, const float* zeros, float* to) const {
    const int64_t channels = call.channels;
    const Place at = place(tile);
    const float* from[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t y = at.y + i / 4 - call.above, x = at.x + i % 4 - call.before;
      const bool inside = exists && y >= 0 && y < call.in_h && x >= 0 && x < call.in_w;
      from[i] = inside ? call.x + ((at.image * call.in_h + y) * call.in_w + x) * channels : zeros;
    }
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      Vec d[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) d[i] = vec(from[i] + c);
      transform_input(d);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) put(to + i * plane + c, d[i]);
    }
    for (; c < channels; ++c) {
      float d[16];
      for (int i = 0; i < 16; ++i) d[i] = from[i][c];
      transform_input(d);
      for (int i = 0; i < 16; ++i) to[i * plane + c] = d[i];
    }
  }

  // kRows rows of inputs by `width` columns of a panel.
  void multiply(const float* inputs, const float* weight, int64_t width, float* to) const {
    for (int64_t k = 0; k < width; k += kVecs * kLanes) {
      const int64_t vectors = (width - k + kLanes - 1) / kLanes;
      if (vectors > 2)
        multiply<kVecs>(inputs, weight + k, to + k);
      else if (vectors == 2)
        multiply<2>(inputs, weight + k, to + k);
      else
        multiply<1>(inputs, weight + k, to + k);
    }
  }

  template <int vectors>
  void multiply(const float* inputs, const float* weight, float* to) const {
    Vec sum[kRows][vectors] = {};
    for (int64_t c = 0; c < call.channels; ++c, weight += kPanel) {
      Vec w[vectors];
      for (int j = 0; j < vectors; ++j) w[j] = vec(weight + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const float x = inputs[r * row + c];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[r][j] += x * w[j];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < vectors; ++j) put(to + r * kPanel + j * kLanes, sum[r][j]);
  }

  // A tile's outputs k … k + width - 1; a tile at the border has fewer than 2×2.
  void scatter(int64_t tile, int64_t k, int64_t width, const float* products) const {
    const Place at = place(tile);
    for (int64_t from = 0; from < width; from += kLanes) {
      Vec m[16], y[4];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) m[i] = vec(products + i * result + from);
      transform_output(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int64_t row = at.y + i / 2, col = at.x + i % 2;
        if (row >= call.out_h || col >= call.out_w) continue;
        const int64_t pixel = (at.image * call.out_h + row) * call.out_w + col;
        finish(y[i], pixel * call.outputs + k + from, k + from, width - from);
      }
    }
  }

  // At most `left` outputs from k on, which go to `index`.
  void finish(Vec y, int64_t index, int64_t k, int64_t left) const {
    if (left >= kLanes) {
      if (call.bias) y += vec(call.bias + k);
      if (call.other) y += vec(call.other + index);
      put(call.out + index, call.relu ? y < Vec{} ? Vec{} : y : y);  // a NaN stays one
      return;
    }
    for (int i = 0; i < left; ++i) {
      float value = y[i];
      if (call.bias) value += call.bias[k + i];
      if (call.other) value += call.other[index + i];
      call.out[index + i] = call.relu && value < 0 ? 0 : value;
    }
  }
};

void winograd(const WinogradCall& call, int threads) {
  if (call.batch > 0 && call.outputs > 0) Winograd(call, threads).run();
}

// G times a column (a, b, c) of each kernel of a panel, to rows 0, step, 2·step and 3·step.
void half_pack(const double* a, const double* b, const double* c, double (*to)[kPanel], int step) {
  for (int64_t k = 0; k < kPanel; ++k) {
    to[0][k] = a[k];
    to[step][k] = (a[k] + b[k] + c[k]) / 2;
    to[2 * step][k] = (a[k] - b[k] + c[k]) / 2;
    to[3 * step][k] = c[k];
  }
}

// G·g·Gᵀ of each kernel, in double.
void winograd_pack(const WinogradPackCall& call, int threads) {
  const int64_t panels = (call.outputs + kPanel - 1) / kPanel;
  const int64_t values = panels * call.channels * 16 * kPanel;
  parallel_for(workers(threads, panels, values), panels, [&](int64_t panel) {
    const int64_t first = panel * kPanel, left = call.outputs - first;
    const int64_t width = left < kPanel ? left : kPanel;
    for (int64_t c = 0; c < call.channels; ++c) {
      double g[9][kPanel] = {};
      for (int64_t k = 0; k < width; ++k) {
        const float* kernel = call.weight + ((first + k) * call.channels + c) * 9;
        for (int i = 0; i < 9; ++i) g[i][k] = kernel[i];
      }
      double t[12][kPanel];  // G·g, 4×3
      for (int j = 0; j < 3; ++j) half_pack(g[j], g[3 + j], g[6 + j], t + j, 3);
      for (int i = 0; i < 4; ++i) {
        double row[4][kPanel];
        half_pack(t[3 * i], t[3 * i + 1], t[3 * i + 2], row, 1);
        float* out = call.out + ((panel * 16 + 4 * i) * call.channels + c) * kPanel;
        for (int j = 0; j < 4; ++j, out += call.channels * kPanel)
          for (int64_t k = 0; k < kPanel; ++k) out[k] = float(row[j][k]);
      }
    }
  });
}
