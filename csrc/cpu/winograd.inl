// Winograd's F(2×2, 3×3) and F(4×4, 3×3) (Lavin & Gray, CVPR 2016): a tile of 2×2 outputs takes 16
// products where a convolution takes 36, one of 4×4 outputs 36 where it takes 144, with stride 2 81.
// The transformed inputs of a block of tiles stay in the cache of one core, and so do its products
// with one panel of outputs. Where the weights are heavy the threads share a block: each transforms
// some of its tiles, then each multiplies by panels of its own.
//
// The file that includes this one defines kTiles, those of a block, a multiple of kRows.

constexpr int64_t kCached = 2000000;  // bytes of a block's transformed inputs
constexpr int64_t kShared = 8000000;  // those of a shared block, whose weights come from beyond L2
constexpr int64_t kSharedTiles = 96;
constexpr int64_t kDepth = 32768;     // bytes of weights that are multiplied at once: they stay in L1
constexpr int64_t kStreamed = 4 << 20;  // bytes of weights beyond which no core should read all

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

template <int n>
struct Number {
  static constexpr int value = n;
};

// Each tile size says how one line of it is transformed: Bᵀ·d in place, Aᵀ·m and G·g. Tiles at the
// end of a map may have m < kOut outputs a line. They take the first of the same points and the last
// one, so that they share the weights; what those lack of their factors the inputs make up for.

struct Two {  // from the points 0, ±1 and ∞
  static constexpr int kOut = 2, kIn = 4, kStride = 1;

  // Inputs of a line of m outputs, which are as many as its products.
  static constexpr int inputs(int m) { return m + 2; }
  // Which of the kIn products of a whole line the i-th of m outputs is.
  static constexpr int place(int m, int i) { return i <= m ? i : kIn - 1; }

  template <int m>
  struct Line {
    template <class V>
    SDSGSM_HD void input(V* d) {
      if constexpr (m == 2) {
        const V a = d[0] - d[2], b = d[1] + d[2], c = d[2] - d[1], e = d[1] - d[3];
        d[0] = a, d[1] = b, d[2] = c, d[3] = e;
      } else {
        const V a = d[0] - d[1], b = d[1] + d[1], e = d[1] - d[2];
        d[0] = a, d[1] = b, d[2] = e;
      }
    }

    template <class V>
    SDSGSM_HD void output(const V* v, V* y) {
      if constexpr (m == 2) {
        y[0] = v[0] + v[1] + v[2];
        y[1] = v[1] - v[2] - v[3];
      } else {
        y[0] = v[0] + v[1] - v[2];
      }
    }
  };

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

  static constexpr int inputs(int m) { return m + 2; }
  static constexpr int place(int m, int i) { return i <= m ? i : kIn - 1; }

  template <int m>
  struct Line {
    template <class V>
    SDSGSM_HD void input(V* d) {
      if constexpr (m == 4) {
        const V a = d[4] - qq * d[2], b = p * d[3] - p * qq * d[1];
        const V c = d[4] - pp * d[2], e = q * d[3] - q * pp * d[1];
        const V first = pp * qq * d[0] - (pp + qq) * d[2] + d[4];
        const V last = pp * qq * d[1] - (pp + qq) * d[3] + d[5];
        d[0] = first, d[1] = a + b, d[2] = a - b, d[3] = c + e, d[4] = c - e, d[5] = last;
      } else if constexpr (m == 3) {
        const V a = (p + q) * (d[3] + (p - q) * d[2] - p * q * d[1]);
        const V b = (q - p) * (d[3] - (p + q) * d[2] + p * q * d[1]);
        const V c = 2 * q * (d[3] - pp * d[1]);
        const V first = q * d[3] - qq * d[2] - q * pp * d[1] + pp * qq * d[0];
        const V last = d[4] - q * d[3] - pp * d[2] + pp * q * d[1];
        d[0] = first, d[1] = a, d[2] = b, d[3] = c, d[4] = last;
      } else if constexpr (m == 2) {
        const V a = (pp - qq) * (d[2] + p * d[1]), b = (pp - qq) * (d[2] - p * d[1]);
        const V first = pp * qq * d[0] - qq * d[2], last = d[3] - pp * d[1];
        d[0] = first, d[1] = a, d[2] = b, d[3] = last;
      } else {
        const V first = pp * qq * d[0] - p * qq * d[1], last = d[2] - p * d[1];
        d[0] = first, d[1] = 2 * p * (pp - qq) * d[1], d[2] = last;
      }
    }

    template <class V>
    SDSGSM_HD void output(const V* v, V* y) {
      if constexpr (m == 4) {
        const V a = v[1] + v[2], b = v[1] - v[2], c = v[3] + v[4], e = v[3] - v[4];
        y[0] = v[0] + a + c;
        y[1] = p * b + q * e;
        y[2] = pp * a + qq * c;
        y[3] = p * pp * b + q * qq * e + v[5];
      } else if constexpr (m == 3) {
        const V a = v[1] + v[2], b = v[1] - v[2];
        y[0] = v[0] + a + v[3];
        y[1] = p * b + q * v[3];
        y[2] = pp * a + qq * v[3] + v[4];
      } else if constexpr (m == 2) {
        y[0] = v[0] + v[1] + v[2];
        y[1] = p * (v[1] - v[2]) + v[3];
      } else {
        y[0] = v[0] + v[1] + v[2];
      }
    }
  };

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

  static constexpr int inputs(int m) { return 2 * m + 1; }
  static constexpr int place(int m, int i) { return i < 2 * m ? i : kIn - 1; }

  template <int m>
  struct Line {
    template <class V>
    SDSGSM_HD void input(V* d) {
      if constexpr (m == 4) {
        const V a = d[6] - qq * d[2], b = p * (d[4] - qq * d[0]);
        const V c = d[6] - pp * d[2], e = q * (d[4] - pp * d[0]);
        d[8] = pp * qq * d[0] - (pp + qq) * d[4] + d[8];
        d[0] = a + b, d[2] = a - b, d[4] = c + e, d[6] = c - e;
      } else if constexpr (m == 3) {
        const V a = (p + q) * (d[4] + (p - q) * d[2] - p * q * d[0]);
        const V b = (q - p) * (d[4] - (p + q) * d[2] + p * q * d[0]);
        const V c = 2 * q * (d[4] - pp * d[0]);
        d[6] = d[6] - q * d[4] - pp * d[2] + pp * q * d[0];
        d[0] = a, d[2] = b, d[4] = c;
      } else if constexpr (m == 2) {
        const V a = (pp - qq) * (d[2] + p * d[0]), b = (pp - qq) * (d[2] - p * d[0]);
        d[4] = d[4] - pp * d[0];
        d[0] = a, d[2] = b;
      } else {
        d[2] = d[2] - p * d[0];
        d[0] = 2 * p * (pp - qq) * d[0];
      }
    }

    template <class V>
    SDSGSM_HD void output(const V* v, V* y) {
      if constexpr (m == 4) {
        const V a = v[0] + v[2], b = v[0] - v[2], c = v[4] + v[6], e = v[4] - v[6];
        y[0] = a + c + v[1];
        y[1] = p * b + q * e + v[3];
        y[2] = pp * a + qq * c + v[5];
        y[3] = p * pp * b + q * qq * e + v[8] + v[7];
      } else if constexpr (m == 3) {
        const V a = v[0] + v[2], b = v[0] - v[2];
        y[0] = a + v[4] + v[1];
        y[1] = p * b + q * v[4] + v[3];
        y[2] = pp * a + qq * v[4] + v[6] + v[5];
      } else if constexpr (m == 2) {
        y[0] = v[0] + v[2] + v[1];
        y[1] = p * (v[0] - v[2]) + v[4] + v[3];
      } else {
        y[0] = v[0] + v[2] + v[1];
      }
    }
  };

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

// Calls f with the type that transforms a line of m outputs.
template <class Tile, class F>
SDSGSM_HD void with_line(int m, const F& f) {
  if (m == Tile::kOut) return f(typename Tile::template Line<Tile::kOut>{}, Number<Tile::kOut>{});
  if (m == 1) return f(typename Tile::template Line<1>{}, Number<1>{});
  if constexpr (Tile::kOut > 2) {
    if (m == 2) return f(typename Tile::template Line<2>{}, Number<2>{});
    return f(typename Tile::template Line<3>{}, Number<3>{});
  }
}

template <class Tile, class Type>
class Winograd {
  typedef typename Type::Value Value;

 public:
  // Computes `count` images, which are listed.
  Winograd(const WinogradCall& c, const int64_t* listed, int64_t count, int threads)
      : call(c), images(listed) {
    down = (call.out_h + kOut - 1) / kOut;
    across = (call.out_w + kOut - 1) / kOut;
    last_h = int(call.out_h - (down - 1) * kOut);
    last_w = int(call.out_w - (across - 1) * kOut);
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
    plane = (block + kRows) * row + kApart;
    result = (block + kRows) * kPanel + kLine / int64_t(sizeof(float));
  }

  void run() const {
    const int64_t values = (kPlanes * plane + row) * kBytes, lines = (values + kLine - 1) / kLine;
    const int64_t sums = (kPlanes * result * int64_t(sizeof(float)) + kLine - 1) / kLine;
    const int64_t blocks = (tiles + block - 1) / block, team = below * beside;
    const int64_t places = (block * int64_t(sizeof(int64_t)) + kLine - 1) / kLine;
    const size_t bytes = size_t((below * (lines + places) + team * sums) * kLine);
    char* scratch = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
    const auto inputs = [=](int64_t k) {
      return reinterpret_cast<Value*>(scratch + k * lines * kLine);
    };
    const auto products = [=](int64_t k) {
      return reinterpret_cast<float*>(scratch + (below * lines + k * sums) * kLine);
    };
    const auto order = [=](int64_t k) {
      return reinterpret_cast<int64_t*>(scratch + (below * lines + team * sums + k * places) * kLine);
    };
    for (int64_t k = 0; k < below; ++k)
      memset(inputs(k) + kPlanes * plane, 0, size_t(row * kBytes));  // where gather() finds zeros
    if (beside == 1) {
      parallel_for(int(team), team, [&](int64_t k) {
        for (int64_t b = blocks * k / below; b < blocks * (k + 1) / below; ++b) {
          const Block now = sorted(b * block, order(k));
          gather_block(now, 0, block, inputs(k));
          multiply_block(now, 0, panels, inputs(k), products(k));
        }
      });
    } else {
      for (int64_t b = 0; b < blocks; ++b) {
        const Block now = sorted(b * block, order(0));
        parallel_for(int(team), team, [&](int64_t k) {
          gather_block(now, block * k / team, block * (k + 1) / team, inputs(0));
        });
        parallel_for(int(team), team, [&](int64_t k) {
          const int64_t from = panels * k / team, to = panels * (k + 1) / team;
          multiply_block(now, from, to, inputs(0), products(k));
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
  int last_h, last_w;     // outputs of the last tiles, down and across
  int64_t panels;
  int64_t below, beside;  // threads that share the tiles, and the panels
  int64_t block;          // tiles that are worked on at once
  int64_t padded;         // channels, filled up to whole pairs
  int64_t row;            // values from one tile's inputs to the next one's
  int64_t plane, result;  // values from one of kPlanes matrices to the next: inputs, products

  // A tile's first output and how many it has.
  struct Place {
    int64_t image, y, x;
    int height, width;
  };
  Place place(int64_t tile) const {
    const int64_t at = tile % (down * across), y = at / across, x = at % across;
    return {images[tile / (down * across)], y * kOut, x * kOut, y == down - 1 ? last_h : kOut,
            x == across - 1 ? last_w : kOut};
  }

  // Tiles that are worked on at once: first those that are cut at both ends, then those cut across,
  // whole ones, those cut down. So the tiles that have a product are neighbours, whichever it is.
  struct Block {
    const int64_t* tiles;
    int64_t from[5];  // first of each of the four kinds; all
    int64_t count() const { return from[4]; }
  };
  Block sorted(int64_t first, int64_t* order) const {
    const int64_t count = tiles - first < block ? tiles - first : block;
    const auto kind_of = [&](int64_t tile) {
      const Place at = place(tile);
      return at.width < kOut ? at.height < kOut ? 0 : 1 : at.height < kOut ? 3 : 2;
    };
    Block found{order, {}};
    for (int64_t t = 0; t < count; ++t) ++found.from[kind_of(first + t) + 1];
    for (int k = 0; k < 4; ++k) found.from[k + 1] += found.from[k];
    int64_t next[4];
    for (int k = 0; k < 4; ++k) next[k] = found.from[k];
    for (int64_t t = 0; t < count; ++t) order[next[kind_of(first + t)]++] = first + t;
    return found;
  }

  // Whether a line of m outputs has the k-th product.
  static bool has(int m, int k) {
    for (int i = 0; i < Tile::inputs(m); ++i)
      if (Tile::place(m, i) == k) return true;
    return false;
  }

  // The inputs in rows from … to - 1 of a block.
  void gather_block(const Block& now, int64_t from, int64_t to, Value* inputs) const {
    const Value* zeros = inputs + kPlanes * plane;
    if (to > now.count()) to = now.count();
    const Value* read[2][kPlanes];  // of this tile and of the next one
    if (from < to) locate(now.tiles[from], zeros, read[from % 2]);
    for (int64_t t = from; t < to; ++t) {
      const int64_t next = t + 1 < to ? t + 1 : t;
      locate(now.tiles[next], zeros, read[(t + 1) % 2]);
      gather(now.tiles[t], read[t % 2], read[(t + 1) % 2], inputs + t * row);
    }
  }

  // A block's outputs in the panels from … to - 1. Rows that fill up the last kRows of a product
  // hold whatever is there; nobody reads what comes of them.
  void multiply_block(const Block& now, int64_t from, int64_t to, const Value* inputs,
                      float* products) const {
    bool in_last[2][kIn];
    for (int i = 0; i < kIn; ++i) in_last[0][i] = has(last_h, i), in_last[1][i] = has(last_w, i);
    for (int64_t k = from * kPanel; k < to * kPanel && k < call.outputs; k += kPanel) {
      const int64_t width = call.outputs - k < kPanel ? call.outputs - k : kPanel;
      const Value* weight = static_cast<const Value*>(call.weight) + k * kPlanes * padded;
      for (int i = 0; i < kPlanes; ++i) {
        const bool down_too = in_last[0][i / kIn], across_too = in_last[1][i % kIn];
        const int64_t first = now.from[!across_too ? 2 : !down_too ? 1 : 0];
        const int64_t tiles_of = now.from[down_too ? 4 : 3] - first;
        if (tiles_of == 0) continue;
        const int64_t rows = (tiles_of + kRows - 1) / kRows * kRows;
        for (int64_t c = 0; c < padded; c += kAtOnce)
          multiply(inputs + i * plane + first * row + c, c, rows,
                   weight + (i * padded + c) * kPanel, width, products + i * result + first * kPanel);
      }
      for (int64_t t = 0; t < now.count(); ++t)
        scatter(now.tiles[t], k, width, products + t * kPanel);
    }
  }

  // Bᵀ·d·B of a tile of inputs: `read(i, j)` them, `write` them by the places of their products.
  template <class V, class Read, class Write>
  SDSGSM_HD void transform(int height, int width, const Read& read, const Write& write) {
    V d[kPlanes];
    with_line<Tile>(width, [&](auto line, auto m) {
      constexpr int inputs = Tile::inputs(m.value);
      for (int i = 0; i < Tile::inputs(height); ++i) {
        V v[inputs];
#pragma GCC unroll 9
        for (int j = 0; j < inputs; ++j) v[j] = read(i, j);
        line.input(v);
#pragma GCC unroll 9
        for (int j = 0; j < inputs; ++j) d[i * kIn + j] = v[j];
      }
    });
    with_line<Tile>(height, [&](auto line, auto m) {
      constexpr int inputs = Tile::inputs(m.value);
      for (int j = 0; j < Tile::inputs(width); ++j) {
        V v[inputs];
#pragma GCC unroll 9
        for (int i = 0; i < inputs; ++i) v[i] = d[i * kIn + j];
        line.input(v);
        const int place = Tile::place(width, j);
#pragma GCC unroll 9
        for (int i = 0; i < inputs; ++i) write(Tile::place(m.value, i) * kIn + place, v[i]);
      }
    });
  }

  // Where the inputs of a tile are.
  void locate(int64_t tile, const Value* zeros, const Value** from) const {
    const Place at = place(tile);
    const Pixels<Value> input(call.x, call.tiles, at.image, call.in_h, call.in_w, call.channels);
    input.list(at.y * kStride - call.above, at.x * kStride - call.before, kIn, kIn, from, kIn, zeros);
  }

  // The transformed inputs of a tile. Those of the next one are asked for.
  void gather(int64_t tile, const Value* const* from, const Value* const* next, Value* to) const {
    const int64_t channels = call.channels;
    const Place at = place(tile);
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      if (c % kApart == 0)
        for (int i = 0; i < kPlanes; ++i) __builtin_prefetch(next[i] + c);
      transform<Vec>(
          at.height, at.width, [&](int i, int j) { return Type::read(from[i * kIn + j] + c); },
          [&](int place, Vec value) { Type::write(to + place * plane + c, value); });
    }
    for (; c < padded; ++c)
      transform<float>(
          at.height, at.width,
          [&](int i, int j) { return c < channels ? load(from[i * kIn + j] + c) : 0.0f; },
          [&](int place, float value) { store(to + place * plane + c, value); });
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

  // A tile's outputs k … k + width - 1.
  void scatter(int64_t tile, int64_t k, int64_t width, const float* products) const {
    const Place at = place(tile);
    const Value* others[kOut * kOut] = {};
    if (call.other || call.others)
      Pixels<Value>(call.other, call.others, at.image, call.out_h, call.out_w, call.outputs)
          .list(at.y, at.x, at.height, at.width, others, kOut, nullptr);
    for (int64_t from = 0; from < width; from += kLanes) {
      alignas(kLine) Vec half[kOut * kIn];
      with_line<Tile>(at.height, [&](auto line, auto m) {
        constexpr int inputs = Tile::inputs(m.value);
        for (int j = 0; j < Tile::inputs(at.width); ++j) {
          const float* read = products + Tile::place(at.width, j) * result + from;
          alignas(kLine) Vec v[inputs], y[m.value];
#pragma GCC unroll 9
          for (int i = 0; i < inputs; ++i) v[i] = vec(read + Tile::place(m.value, i) * kIn * result);
          line.output(v, y);
#pragma GCC unroll 4
          for (int i = 0; i < m.value; ++i) half[i * kIn + j] = y[i];
        }
      });
      with_line<Tile>(at.width, [&](auto line, auto m) {
        for (int i = 0; i < at.height; ++i) {
          alignas(kLine) Vec y[m.value];
          line.output(half + i * kIn, y);
          const int64_t pixel = (at.image * call.out_h + at.y + i) * call.out_w + at.x;
#pragma GCC unroll 4
          for (int j = 0; j < m.value; ++j)
            finish(y[j], pixel + j, others[i * kOut + j], k + from, width - from);
        }
      });
    }
  }

  // At most `left` outputs of a pixel from k on.
  void finish(Vec y, int64_t pixel, const Value* other, int64_t k, int64_t left) const {
    Value* out = static_cast<Value*>(call.out) + pixel * call.outputs;
    if (left >= kLanes) {
      if (call.bias) y += vec(call.bias + k);
      if (other) y += Type::read(other + k);
      Type::write(out + k, call.relu ? y < Vec{} ? Vec{} : y : y);  // a NaN stays one
      return;
    }
    for (int i = 0; i < left; ++i) {
      float value = y[i];
      if (call.bias) value += call.bias[k + i];
      if (other) value += load(other + k + i);
      store(out + k + i, call.relu && value < 0 ? 0 : value);
    }
  }
};

// Lists the images to compute. Where nothing is added one of zeros gives zeros, which are written
// here: that is the gradient of an image that nobody asks for.
template <class Value>
int64_t list_images(const WinogradCall& call, int threads, int64_t* images) {
  const int64_t in = call.in_h * call.in_w * call.channels;
  const int64_t out = call.out_h * call.out_w * call.outputs;
  const bool adds = call.bias || call.other || call.others || call.tiles;
  parallel_for(workers(threads, call.batch, call.batch * out), call.batch, [&](int64_t b) {
    images[b] = b;
    if (adds) return;
    const Value* x = static_cast<const Value*>(call.x) + b * in;
    int64_t zeros = 0;
    while (zeros < in && load(x + zeros) == 0) ++zeros;
    if (zeros < in) return;
    images[b] = -1;
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
