// Winograd's F(2×2, 3×3) and F(4×4, 3×3) (Lavin & Gray, CVPR 2016): a tile of 2×2 outputs takes 16
// products where a convolution takes 36, one of 4×4 outputs 36 where it takes 144, with stride 2 81.
// The transformed inputs of a block of tiles stay in the cache of one core, and so do its products
// with one panel of outputs. Where the weights are heavy the threads share a block: each transforms
// some of its tiles, then each multiplies by panels of its own.
//
// The file that includes this one defines kLanes, the floats of a vector, and kRows and kVecs: the
// sums of kRows tiles by kVecs vectors of outputs fit the registers. And kTiles, of a block, a
// multiple of kRows.

constexpr int64_t kLine = 64;         // bytes between planes and rows: else they share cache sets
constexpr int64_t kCached = 2000000;  // bytes of a block's transformed inputs
constexpr int64_t kShared = 8000000;  // those of a shared block, whose weights come from beyond L2
constexpr int64_t kSharedTiles = 96;
constexpr int64_t kDepth = 32768;     // bytes of weights that are multiplied at once: they stay in L1
constexpr int64_t kStreamed = 4 << 20;  // bytes of weights beyond which no core should read all

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

SDSGSM_HD Vec vec(const float* at) { return *reinterpret_cast<const Vec*>(at); }
SDSGSM_HD void put(float* at, Vec value) { *reinterpret_cast<Vec*>(at) = value; }

// Numbers of maps, transformed inputs and weights, and how they are multiplied: kPair channels of
// kLanes outputs at once.
struct Single {
  typedef float Value;
  static constexpr int kPair = 1;

  SDSGSM_HD Vec read(const float* at) { return vec(at); }
  SDSGSM_HD void write(float* at, Vec value) { put(at, value); }
  SDSGSM_HD Vec weights(const float* at) { return vec(at); }
  SDSGSM_HD float input(const float* at) { return *at; }
  SDSGSM_HD Vec added(Vec sum, float x, Vec w) { return sum + x * w; }
};

// Each tile size says how one line of it is transformed: Bᵀ·d, Aᵀ·m and G·g, `step` values apart.

struct Two {  // from the points 0, ±1 and ∞
  static constexpr int kOut = 2, kIn = 4, kStride = 1;

  template <class V>
  SDSGSM_HD void input(V* d, int s) {
    const V a = d[0] - d[2 * s], b = d[s] + d[2 * s], c = d[2 * s] - d[s], e = d[s] - d[3 * s];
    d[0] = a, d[s] = b, d[2 * s] = c, d[3 * s] = e;
  }

  template <class V>
  SDSGSM_HD void output(const V* m, int s, V* y, int to) {
    y[0] = m[0] + m[s] + m[2 * s];
    y[to] = m[s] - m[2 * s] - m[3 * s];
  }

  static void weight(double a, double b, double c, double* g, int64_t s) {
    g[0] = a;
    g[s] = (a + b + c) / 2;
    g[2 * s] = (a - b + c) / 2;
    g[3 * s] = c;
  }
};

// From the points 0, ±p, ±q and ∞. With p = 3/4 and q = 3/2 the rounding errors are a third of those
// of the usual 1 and 2, and twice those of the smaller tile; all constants are exact.
struct Four {
  static constexpr int kOut = 4, kIn = 6, kStride = 1;
  static constexpr float p = 0.75f, q = 1.5f, pp = p * p, qq = q * q;

  template <class V>
  SDSGSM_HD void input(V* d, int s) {
    const V a = d[4 * s] - qq * d[2 * s], b = p * d[3 * s] - p * qq * d[s];
    const V c = d[4 * s] - pp * d[2 * s], e = q * d[3 * s] - q * pp * d[s];
    const V first = pp * qq * d[0] - (pp + qq) * d[2 * s] + d[4 * s];
    const V last = pp * qq * d[s] - (pp + qq) * d[3 * s] + d[5 * s];
    d[0] = first, d[s] = a + b, d[2 * s] = a - b, d[3 * s] = c + e, d[4 * s] = c - e;
    d[5 * s] = last;
  }

  template <class V>
  SDSGSM_HD void output(const V* m, int s, V* y, int to) {
    const V a = m[s] + m[2 * s], b = m[s] - m[2 * s];
    const V c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
    y[0] = m[0] + a + c;
    y[to] = p * b + q * e;
    y[2 * to] = pp * a + qq * c;
    y[3 * to] = p * pp * b + q * qq * e + m[5 * s];
  }

  static void weight(double a, double b, double c, double* g, int64_t s) {
    const double P = pp, Q = qq, of_p = 1 / (2 * P * (P - Q)), of_q = 1 / (2 * Q * (Q - P));
    g[0] = a / (P * Q);
    g[s] = (a + p * b + P * c) * of_p;
    g[2 * s] = (a - p * b + P * c) * of_p;
    g[3 * s] = (a + q * b + Q * c) * of_q;
    g[4 * s] = (a - q * b + Q * c) * of_q;
    g[5 * s] = c;
  }
};

// With stride 2 the even inputs go by two weights of a line and the odd ones by the third: F(4, 2)
// from the points ±p, ±q and ∞ in the even places, plain products in the odd ones. These p and q
// gave the smallest rounding errors of those with exact constants.
struct Halving {
  static constexpr int kOut = 4, kIn = 9, kStride = 2;
  static constexpr float p = 0.5f, q = 1.25f, pp = p * p, qq = q * q;

  template <class V>
  SDSGSM_HD void input(V* d, int s) {
    const V a = d[6 * s] - qq * d[2 * s], b = p * (d[4 * s] - qq * d[0]);
    const V c = d[6 * s] - pp * d[2 * s], e = q * (d[4 * s] - pp * d[0]);
    d[8 * s] = pp * qq * d[0] - (pp + qq) * d[4 * s] + d[8 * s];
    d[0] = a + b, d[2 * s] = a - b, d[4 * s] = c + e, d[6 * s] = c - e;
  }

  template <class V>
  SDSGSM_HD void output(const V* m, int s, V* y, int to) {
    const V a = m[0] + m[2 * s], b = m[0] - m[2 * s];
    const V c = m[4 * s] + m[6 * s], e = m[4 * s] - m[6 * s];
    y[0] = a + c + m[s];
    y[to] = p * b + q * e + m[3 * s];
    y[2 * to] = pp * a + qq * c + m[5 * s];
    y[3 * to] = p * pp * b + q * qq * e + m[8 * s] + m[7 * s];
  }

  static void weight(double a, double b, double c, double* g, int64_t s) {
    const double P = pp, Q = qq, of_p = 1 / (2 * p * (P - Q)), of_q = 1 / (2 * q * (Q - P));
    g[0] = (a + p * c) * of_p;
    g[2 * s] = (p * c - a) * of_p;
    g[4 * s] = (a + q * c) * of_q;
    g[6 * s] = (q * c - a) * of_q;
    g[8 * s] = c;
    g[s] = g[3 * s] = g[5 * s] = g[7 * s] = b;
  }
};

template <class Tile, class Type>
class Winograd {
  typedef typename Type::Value Value;

 public:
  // Computes `count` images, which are listed.
  Winograd(const WinogradCall& c, const int64_t* listed, int64_t count, int threads)
      : call(c), images(listed) {
    down = (call.out_h + kOut - 1) / kOut;
    across = (call.out_w + kOut - 1) / kOut;
    tiles = count * down * across;
    panels = (call.outputs + kPanel - 1) / kPanel;
    padded = (call.channels + kPair - 1) / kPair * kPair;
    row = (call.channels + kApart - 1) / kApart * kApart + kApart;
    const bool heavy = kPlanes * call.channels * call.outputs * kBytes > kStreamed;
    beside = heavy && panels >= threads ? threads : 1;
    const int64_t groups = (tiles + kRows - 1) / kRows, most_rows = threads / beside;
    below = groups < most_rows ? groups : most_rows;
    const int64_t cached = beside > 1 ? kShared : kCached;
    const int64_t limit = beside > 1 ? kSharedTiles : kTiles;
    int64_t most = cached / (kPlanes * row * kBytes) / kRows * kRows;
    most = most < kRows ? kRows : most > limit ? limit : most;
    const int64_t rounds = (tiles + below * most - 1) / (below * most);
    block = ((tiles + below * rounds - 1) / (below * rounds) + kRows - 1) / kRows * kRows;
    plane = block * row + kApart;
    result = block * kPanel + kLine / int64_t(sizeof(float));
  }

  void run() const {
    const int64_t values = (kPlanes * plane + row) * kBytes, lines = (values + kLine - 1) / kLine;
    const int64_t sums = (kPlanes * result * int64_t(sizeof(float)) + kLine - 1) / kLine;
    const int64_t blocks = (tiles + block - 1) / block, team = below * beside;
    const size_t bytes = size_t((below * lines + team * sums) * kLine);
    char* scratch = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
    const auto inputs = [=](int64_t k) {
      return reinterpret_cast<Value*>(scratch + k * lines * kLine);
    };
    const auto products = [=](int64_t k) {
      return reinterpret_cast<float*>(scratch + (below * lines + k * sums) * kLine);
    };
    for (int64_t k = 0; k < below; ++k)
      memset(inputs(k) + kPlanes * plane, 0, size_t(row * kBytes));  // where gather() finds zeros
    if (beside == 1) {
      parallel_for(int(team), team, [&](int64_t k) {
        for (int64_t b = blocks * k / below; b < blocks * (k + 1) / below; ++b) {
          gather_block(b * block, 0, block, inputs(k));
          multiply_block(b * block, 0, panels, inputs(k), products(k));
        }
      });
    } else {
      for (int64_t b = 0; b < blocks; ++b) {
        parallel_for(int(team), team, [&](int64_t k) {
          gather_block(b * block, block * k / team, block * (k + 1) / team, inputs(0));
        });
        parallel_for(int(team), team, [&](int64_t k) {
          const int64_t from = panels * k / team, to = panels * (k + 1) / team;
          multiply_block(b * block, from, to, inputs(0), products(k));
        });
      }
    }
    ::operator delete(scratch, std::align_val_t(64));
  }

 private:
  static constexpr int kOut = Tile::kOut, kIn = Tile::kIn, kPlanes = kIn * kIn;
  static constexpr int kStride = Tile::kStride;
  static constexpr int kPair = Type::kPair;
  static constexpr int64_t kBytes = sizeof(Value), kApart = kLine / kBytes;
  static constexpr int64_t kAtOnce = kDepth / (kPanel * kBytes);  // channels

  const WinogradCall& call;
  const int64_t* images;
  int64_t down, across, tiles;  // tiles a column, a row, in all
  int64_t panels;
  int64_t below, beside;  // threads that share the tiles, and the panels
  int64_t block;          // tiles that are worked on at once
  int64_t padded;         // channels, filled up to whole pairs
  int64_t row;            // values from one tile's inputs to the next one's
  int64_t plane, result;  // values from one of kPlanes matrices to the next: inputs, products

  struct Place {
    int64_t image, y, x;
  };
  Place place(int64_t tile) const {
    const int64_t at = tile % (down * across);
    return {images[tile / (down * across)], at / across * kOut, at % across * kOut};
  }

  // Tiles of the block that begins at `first`, and rows that they fill.
  int64_t count_of(int64_t first) const { return tiles - first < block ? tiles - first : block; }
  int64_t rows_of(int64_t first) const { return (count_of(first) + kRows - 1) / kRows * kRows; }

  // The inputs in rows from … to - 1 of a block.
  void gather_block(int64_t first, int64_t from, int64_t to, Value* inputs) const {
    const int64_t count = count_of(first), rows = rows_of(first);
    const Value* zeros = inputs + kPlanes * plane;
    for (int64_t t = from; t < to && t < rows; ++t)
      gather(first + t, t < count, zeros, inputs + t * row);
  }

  // A block's outputs in the panels from … to - 1.
  void multiply_block(int64_t first, int64_t from, int64_t to, const Value* inputs,
                      float* products) const {
    const int64_t count = count_of(first), rows = rows_of(first);
    for (int64_t k = from * kPanel; k < to * kPanel && k < call.outputs; k += kPanel) {
      const int64_t width = call.outputs - k < kPanel ? call.outputs - k : kPanel;
      const Value* weight = static_cast<const Value*>(call.weight) + k * kPlanes * padded;
      for (int i = 0; i < kPlanes; ++i)
        for (int64_t c = 0; c < padded; c += kAtOnce)
          multiply(inputs + i * plane + c, c, rows, weight + (i * padded + c) * kPanel, width,
                   products + i * result);
      for (int64_t t = 0; t < count; ++t) scatter(first + t, k, width, products + t * kPanel);
    }
  }

  // Bᵀ·d·B of a tile of inputs, in place.
  template <class V>
  SDSGSM_HD void transform(V (&d)[kPlanes]) {
#pragma GCC unroll 9
    for (int i = 0; i < kIn; ++i) Tile::input(d + kIn * i, 1);
#pragma GCC unroll 9
    for (int j = 0; j < kIn; ++j) Tile::input(d + j, kIn);
  }

  // The transformed inputs of a tile; zeros for one that only fills up the rows.
  void gather(int64_t tile, bool exists, const Value* zeros, Value* to) const {
    const int64_t channels = call.channels;
    const Value* maps = static_cast<const Value*>(call.x);
    const Place at = place(exists ? tile : 0);
    const Value* from[kPlanes];
    for (int i = 0; i < kPlanes; ++i) {
      const int64_t y = at.y * kStride + i / kIn - call.above;
      const int64_t x = at.x * kStride + i % kIn - call.before;
      const bool inside = exists && y >= 0 && y < call.in_h && x >= 0 && x < call.in_w;
      from[i] = inside ? maps + ((at.image * call.in_h + y) * call.in_w + x) * channels : zeros;
    }
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      Vec d[kPlanes];
#pragma GCC unroll 81
      for (int i = 0; i < kPlanes; ++i) d[i] = Type::read(from[i] + c);
      transform(d);
#pragma GCC unroll 81
      for (int i = 0; i < kPlanes; ++i) Type::write(to + i * plane + c, d[i]);
    }
    for (; c < padded; ++c) {
      float d[kPlanes];
      for (int i = 0; i < kPlanes; ++i) d[i] = c < channels ? load(from[i] + c) : 0;
      transform(d);
      for (int i = 0; i < kPlanes; ++i) store(to + i * plane + c, d[i]);
    }
  }

  // Products of up to kAtOnce channels from `first` on, added to those of the channels before: rows
  // of inputs by columns of a panel.
  void multiply(const Value* inputs, int64_t first, int64_t rows, const Value* weight,
                int64_t width, float* to) const {
    const int64_t left = padded - first, depth = left < kAtOnce ? left : kAtOnce;
    const int64_t parts = rows / kRows * ((width + kVecs * kLanes - 1) / (kVecs * kLanes));
    const int64_t step = kPanel * kBytes / parts;
    // Each part fetches its share of the weights that come next, from further than L2.
    const char* next = reinterpret_cast<const char*>(weight + depth * kPanel);
    for (int64_t r = 0; r < rows; r += kRows, inputs += kRows * row, to += kRows * kPanel)
      for (int64_t k = 0; k < width; k += kVecs * kLanes, next += depth * step) {
        const int64_t vectors = (width - k + kLanes - 1) / kLanes;
        if (vectors > 2)
          multiply<kVecs>(inputs, first, depth, weight + k * kPair, to + k, next, step);
        else if (vectors == 2)
          multiply<2>(inputs, first, depth, weight + k * kPair, to + k, next, step);
        else
          multiply<1>(inputs, first, depth, weight + k * kPair, to + k, next, step);
      }
  }

  template <int vectors>
  void multiply(const Value* inputs, int64_t first, int64_t depth, const Value* weight, float* to,
                const char* next, int64_t step) const {
    Vec sum[kRows][vectors] = {};
    if (first)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < vectors; ++j) sum[r][j] = vec(to + r * kPanel + j * kLanes);
    for (int64_t c = 0; c < depth; c += kPair, weight += kPair * kPanel, next += kPair * step) {
      __builtin_prefetch(next, 0, 2);
      decltype(Type::weights(weight)) w[vectors];
      for (int j = 0; j < vectors; ++j) w[j] = Type::weights(weight + j * kLanes * kPair);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto x = Type::input(inputs + r * row + c);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[r][j] = Type::added(sum[r][j], x, w[j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < vectors; ++j) put(to + r * kPanel + j * kLanes, sum[r][j]);
  }

  // A tile's outputs k … k + width - 1; a tile at the border has fewer than the others.
  void scatter(int64_t tile, int64_t k, int64_t width, const float* products) const {
    const Place at = place(tile);
    for (int64_t from = 0; from < width; from += kLanes) {
      Vec half[kOut * kIn], y[kOut * kOut];
#pragma GCC unroll 9
      for (int j = 0; j < kIn; ++j) {
        Vec m[kIn];
#pragma GCC unroll 9
        for (int i = 0; i < kIn; ++i) m[i] = vec(products + (i * kIn + j) * result + from);
        Tile::output(m, 1, half + j, kIn);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i) Tile::output(half + kIn * i, 1, y + kOut * i, 1);
#pragma GCC unroll 16
      for (int i = 0; i < kOut * kOut; ++i) {
        const int64_t row = at.y + i / kOut, col = at.x + i % kOut;
        if (row >= call.out_h || col >= call.out_w) continue;
        const int64_t pixel = (at.image * call.out_h + row) * call.out_w + col;
        finish(y[i], pixel * call.outputs + k + from, k + from, width - from);
      }
    }
  }

  // At most `left` outputs from k on, which go to `index`.
  void finish(Vec y, int64_t index, int64_t k, int64_t left) const {
    const Value* other = static_cast<const Value*>(call.other);
    Value* out = static_cast<Value*>(call.out);
    if (left >= kLanes) {
      if (call.bias) y += vec(call.bias + k);
      if (other) y += Type::read(other + index);
      Type::write(out + index, call.relu ? y < Vec{} ? Vec{} : y : y);  // a NaN stays one
      return;
    }
    for (int i = 0; i < left; ++i) {
      float value = y[i];
      if (call.bias) value += call.bias[k + i];
      if (other) value += load(other + index + i);
      store(out + index + i, call.relu && value < 0 ? 0 : value);
    }
  }
};

// Lists the images to compute. Where nothing is added one of zeros gives zeros, which are written
// here: that is the gradient of an image that nobody asks for.
template <class Value>
int64_t list_images(const WinogradCall& call, int threads, int64_t* images) {
  const int64_t in = call.in_h * call.in_w * call.channels;
  const int64_t out = call.out_h * call.out_w * call.outputs;
  const bool adds = call.bias || call.other;
  parallel_for(workers(threads, call.batch, call.batch * out), call.batch, [&](int64_t b) {
    const Value* x = static_cast<const Value*>(call.x) + b * in;
    int64_t zeros = 0;
    while (!adds && zeros < in && load(x + zeros) == 0) ++zeros;
    images[b] = !adds && zeros == in ? -1 : b;
    if (images[b] < 0)
      memset(static_cast<Value*>(call.out) + b * out, 0, size_t(out) * sizeof(Value));
  });
  int64_t count = 0;
  for (int64_t b = 0; b < call.batch; ++b)
    if (images[b] >= 0) images[count++] = images[b];
  return count;
}

template <class Type>
void winograd(const WinogradCall& call, int threads) {
  if (call.batch <= 0 || call.outputs <= 0) return;
  auto* images = static_cast<int64_t*>(::operator new(size_t(call.batch) * sizeof(int64_t)));
  const int64_t count = list_images<typename Type::Value>(call, threads, images);
  if (count && call.points == Halving::kIn)
    Winograd<Halving, Type>(call, images, count, threads).run();
  else if (count && call.points == Four::kIn)
    Winograd<Four, Type>(call, images, count, threads).run();
  else if (count)
    Winograd<Two, Type>(call, images, count, threads).run();
  ::operator delete(images);
}

// G·g·Gᵀ of each kernel, in double.
template <class Tile, class Type>
void pack(const WinogradPackCall& call, int threads) {
  constexpr int64_t n = Tile::kIn, pair = Type::kPair;
  const int64_t padded = (call.channels + pair - 1) / pair * pair;
  const int64_t panels = (call.outputs + kPanel - 1) / kPanel;
  const int64_t values = panels * padded * n * n * kPanel;
  parallel_for(workers(threads, panels, values), panels, [&](int64_t panel) {
    const int64_t first = panel * kPanel, left = call.outputs - first;
    const int64_t width = left < kPanel ? left : kPanel;
    for (int64_t c = 0; c < padded; ++c) {
      double g[9][kPanel] = {}, half[n * 3][kPanel], whole[n][kPanel];
      for (int64_t k = 0; k < width && c < call.channels; ++k) {
        const float* kernel = call.weight + ((first + k) * call.channels + c) * 9;
        for (int i = 0; i < 9; ++i) g[i][k] = kernel[i];
      }
      for (int j = 0; j < 3; ++j)
        for (int64_t k = 0; k < kPanel; ++k)
          Tile::weight(g[j][k], g[3 + j][k], g[6 + j][k], &half[j][k], 3 * kPanel);
      for (int64_t i = 0; i < n; ++i) {
        const double(*t)[kPanel] = half + 3 * i;
        for (int64_t k = 0; k < kPanel; ++k)
          Tile::weight(t[0][k], t[1][k], t[2][k], &whole[0][k], kPanel);
        auto* out = static_cast<typename Type::Value*>(call.out) + c % pair +
                    ((panel * n + i) * n * padded + c / pair * pair) * kPanel;
        for (int64_t j = 0; j < n; ++j, out += padded * kPanel)
          for (int64_t k = 0; k < kPanel; ++k) store(out + k * pair, float(whole[j][k]));
      }
    }
  });
}

template <class Type>
void winograd_pack(const WinogradPackCall& call, int threads) {
  if (call.points == Halving::kIn)
    pack<Halving, Type>(call, threads);
  else if (call.points == Four::kIn)
    pack<Four, Type>(call, threads);
  else
    pack<Two, Type>(call, threads);
}
