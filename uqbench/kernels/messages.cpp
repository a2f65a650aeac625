// The message passing of PaiNN and SchNet on a CPU. The forms, their arguments and names are those of painn.py and
// schnet.py. What is computed together is one member and WIDTH channels over all pairs: such items write to nothing in
// common, so they run on any number of threads with the same result; sums over channels are left in parts, one for each
// WIDTH channels, which the caller adds up.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int TILE = 16;  // pairs whose filters are held at once

template <typename T>
struct Simd {
    static constexpr int lanes = 64 / sizeof(T);
    static constexpr int width = 2 * lanes;
    typedef T Vector __attribute__((vector_size(64)));
    typedef T Loose __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
constexpr int WIDTH = Simd<T>::width;

#ifdef __AVX512F__
constexpr int ROWS = 8;  // of a product that are held in registers
#else
constexpr int ROWS = 4;
#endif

// Channels are adjacent; members, blocks and atoms are as far apart as the strides say.
template <typename T>
struct Features {
    T* data;
    int64_t member, block, atom;
};

template <typename T>
Vector<T>& vector(T* aligned, int part) {
    return reinterpret_cast<Vector<T>*>(aligned)[part];
}

template <typename T>
T total(Vector<T> value) {
    T sums[Simd<T>::lanes];
    std::memcpy(sums, &value, sizeof value);
    for (int half = Simd<T>::lanes / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
    return sums[0];
}

// out[r, :] += sum over c of a[r, c] b[c, :]; b and out have rows of `stride` with WIDTH columns in use.
template <typename T, int R>
void product_rows(const T* a, int64_t a_row, int64_t a_column, const T* b, T* out, int stride, int inner) {
    Vector<T> sums[R][2];
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < 2; ++k) sums[r][k] = vector(out + r * stride, k);
    for (int c = 0; c < inner; ++c) {
        const Vector<T> b0 = vector(const_cast<T*>(b) + c * stride, 0), b1 = vector(const_cast<T*>(b) + c * stride, 1);
        for (int r = 0; r < R; ++r) {
            const T factor = a[r * a_row + c * a_column];
            sums[r][0] += factor * b0;
            sums[r][1] += factor * b1;
        }
    }
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < 2; ++k) vector(out + r * stride, k) = sums[r][k];
}

template <typename T, int R = ROWS>
void product(const T* a, int64_t a_row, int64_t a_column, const T* b, T* out, int stride, int rows, int inner) {
    int r = 0;
    for (; r + R <= rows; r += R) product_rows<T, R>(a + r * a_row, a_row, a_column, b, out + r * stride, stride, inner);
    if constexpr (R > 1)
        if (r < rows) product<T, R / 2>(a + r * a_row, a_row, a_column, b, out + r * stride, stride, rows - r, inner);
}

// Memory of one item, aligned for vectors and zeroed.
template <typename T>
class Scratch {
  public:
    T* take(size_t count) {
        blocks_.emplace_back(count / WIDTH<T> + 1);  // zeros
        return reinterpret_cast<T*>(blocks_.back().data());
    }

  private:
    struct alignas(64) Unit {
        T values[WIDTH<T>];
    };
    std::vector<std::vector<Unit>> blocks_;
};

// The channels of one item, of some blocks of features of all atoms, next to each other: rows of one atom in features
// are often a multiple of 4 KiB apart, where caches fail.
template <typename T>
struct Packed {
    T* data = nullptr;
    int blocks = 0;

    T* row(int64_t atom, int block) const { return data + (atom * blocks + block) * WIDTH<T>; }
    Vector<T>& at(int64_t atom, int block, int k) const { return vector(row(atom, block), k); }
};

// Where an item's channels are in features.
struct Place {
    int64_t member, channel, width;
};

template <typename T>
void copy(const T* from, T* to, int64_t width) {
    if (width == WIDTH<T>)
        std::memcpy(to, from, WIDTH<T> * sizeof(T));  // of a size that the compiler knows
    else
        std::memcpy(to, from, width * sizeof(T));
}

// Read `count` blocks into the packed ones from `start` on; zeros beyond the last channel are there already.
template <typename T>
void pack(const Features<T>& x, const Place& place, int64_t atoms, int count, const Packed<T>& packed, int start) {
    const T* from = x.data + place.member * x.member + place.channel;
    for (int64_t i = 0; i < atoms; ++i)
        for (int block = 0; block < count; ++block)
            copy(from + block * x.block + i * x.atom, packed.row(i, start + block), place.width);
}

template <typename T>
void unpack(const Packed<T>& packed, int start, const Place& place, int64_t atoms, int count, const Features<T>& x) {
    T* to = x.data + place.member * x.member + place.channel;
    for (int64_t i = 0; i < atoms; ++i)
        for (int block = 0; block < count; ++block)
            copy<T>(packed.row(i, start + block), to + block * x.block + i * x.atom, place.width);
}

template <typename T, typename Arguments, typename Item>
void each_item(const Arguments& a, Item item) {
    const int64_t blocks = (a.channels + WIDTH<T> - 1) / WIDTH<T>;
    const int64_t items = a.members * blocks;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(std::min<int64_t>(a.threads, items))) if (a.threads > 1)
    for (int64_t n = 0; n < items; ++n) {
        const int64_t channel = n % blocks * WIDTH<T>;
        item({n / blocks, channel, std::min<int64_t>(WIDTH<T>, a.channels - channel)});
    }
}

// ---------------------------------------------------------------------------------------------------------------- PaiNN

// What is absent is null. Geometry is contiguous: u (M, P, 3), b (M, P, K), c (M, blocks, K, F).
template <typename T>
struct PainnArguments {
    int64_t atoms, pairs, members, channels, radial, threads;
    const int64_t *first, *second;
    const T *u, *b, *c;
    Features<T> s, v;  // r and s; p
    Features<T> gq, gm;
    const T *u2, *b2, *c2;
    Features<T> s2, v2;
    T *by_u, *by_b;  // (parts, M, P, 3 or K)
    T* by_c;
    Features<T> by_s, by_v, by_q, by_m;
};

template <typename T>
class Painn {
  public:
    Painn(const PainnArguments<T>& a, const Place& place) : a_(a), place_(place), kinds_(a.v.data ? 3 : 2) {
        z_ = packed(a.s, 2, a.v, 3);
        if (a.gq.data) g_ = packed(a.gq, 1, a.gm, 3);
    }

    void message() {
        const Packed<T> out = room(4);
        const T* c = weights(a_.c);
        T* w = scratch_.take(3 * TILE * WIDTH<T>);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T*, T sign, int t, int k) {
                const Sender z = sender(z_, j, k);
                const Vector<T> wr = sign * filter(w, 0, t, k) * z.r;
                Vector<T> m[3] = {u[0] * wr, u[1] * wr, u[2] * wr};
                if (kinds_ == 3)
                    for (int x = 0; x < 3; ++x) m[x] += filter(w, 2, t, k) * z.p[x];
                out.at(i, 0, k) += filter(w, 1, t, k) * z.s;
                for (int x = 0; x < 3; ++x) out.at(i, 1 + x, k) += m[x];
            });
        });
        unpack(out, 0, place_, a_.atoms, 1, a_.by_q);
        unpack(out, 1, place_, a_.atoms, 3, a_.by_m);
    }

    void pullback() {
        const Packed<T> by_z = a_.by_s.data || a_.by_v.data ? room(2 + 3) : Packed<T>();
        const T* c = weights(a_.c);
        T* w = scratch_.take(3 * TILE * WIDTH<T>);
        const Filters by = by_filters(c, nullptr);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            start(by);
            Along along[TILE] = {};
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T*, T sign, int t, int k) {
                const Receiver g = receiver(i, k);
                const Vector<T> e = sign * (u[0] * g.m[0] + u[1] * g.m[1] + u[2] * g.m[2]);
                if (by.w || a_.by_u) {
                    const Sender z = sender(z_, j, k);
                    if (by.w) add_products(by.w, t, k, z, e, g);
                    if (a_.by_u) along[t].add(sign * filter(w, 0, t, k) * z.r, g);
                }
                if (by_z.data) {
                    by_z.at(j, 0, k) += filter(w, 0, t, k) * e;
                    by_z.at(j, 1, k) += filter(w, 1, t, k) * g.q;
                    if (kinds_ == 3)
                        for (int x = 0; x < 3; ++x) by_z.at(j, 2 + x, k) += filter(w, 2, t, k) * g.m[x];
                }
            });
            finish(by, along, p0, n);
        });
        write_weights(by);
        write_senders(by_z);
    }

    void second() {
        const bool exchanged = a_.b2 || a_.c2;
        const Packed<T> z2 = a_.s2.data ? packed(a_.s2, 2, a_.v2, 3) : Packed<T>(), by_g = room(4);
        const Packed<T> by_z = a_.by_s.data || a_.by_v.data ? room(2 + 3) : Packed<T>();
        const T *c = weights(a_.c), *c2 = a_.c2 ? weights(a_.c2) : nullptr;
        T *w = scratch_.take(3 * TILE * WIDTH<T>), *w2 = scratch_.take(3 * TILE * WIDTH<T>);
        const Filters by = by_filters(c, c2);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            if (a_.b2) filters(a_.b2, c, p0, n, w2, false);
            if (c2) filters(a_.b, c2, p0, n, w2, a_.b2);
            start(by);
            Along along[TILE] = {};
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T* u2, T sign, int t, int k) {
                const Receiver g = receiver(i, k);
                const Sender z = sender(z_, j, k);
                const Vector<T> e = sign * (u[0] * g.m[0] + u[1] * g.m[1] + u[2] * g.m[2]);
                Vector<T> e2 = {};
                if (u2) e2 = sign * (u2[0] * g.m[0] + u2[1] * g.m[1] + u2[2] * g.m[2]);
                // W z with W or z exchanged.
                Sender wz = {};
                if (z2.data) {
                    const Sender y = sender(z2, j, k);
                    if (by.w) add_products(by.w, t, k, y, e, g);
                    add_weighted(wz, w, t, k, y);
                }
                if (by.w && u2) filter(by.w, 0, t, k) += z.r * e2;
                if (exchanged) {
                    if (by.w2) add_products(by.w2, t, k, z, e, g);
                    add_weighted(wz, w2, t, k, z);
                }
                if (a_.by_u) along[t].add(sign * wz.r, g);
                if (by_z.data) {
                    by_z.at(j, 0, k) += filter(w2, 0, t, k) * e + filter(w, 0, t, k) * e2;
                    by_z.at(j, 1, k) += filter(w2, 1, t, k) * g.q;
                    if (kinds_ == 3)
                        for (int x = 0; x < 3; ++x) by_z.at(j, 2 + x, k) += filter(w2, 2, t, k) * g.m[x];
                }
                by_g.at(i, 0, k) += wz.s;
                const Vector<T> wr = sign * filter(w, 0, t, k) * z.r;
                for (int x = 0; x < 3; ++x) {
                    Vector<T> m = sign * u[x] * wz.r + wz.p[x];
                    if (u2) m += u2[x] * wr;
                    by_g.at(i, 1 + x, k) += m;
                }
            });
            finish(by, along, p0, n);
        });
        write_weights(by);
        write_senders(by_z);
        unpack(by_g, 0, place_, a_.atoms, 1, a_.by_q);
        unpack(by_g, 1, place_, a_.atoms, 3, a_.by_m);
    }

  private:
    struct Sender {
        Vector<T> r, s, p[3];
    };
    struct Receiver {
        Vector<T> q, m[3];
    };
    // Derivative by the directions of one pair.
    struct Along {
        Vector<T> x[3];
        void add(Vector<T> wr, const Receiver& g) {
            for (int k = 0; k < 3; ++k) x[k] += wr * g.m[k];
        }
    };
    // Derivatives by filters of a tile, and what becomes of them: w is that by W, w2 that by its exchanged twin.
    struct Filters {
        T *w = nullptr, *w2 = nullptr;
        T *c_t = nullptr, *c2_t = nullptr;  // (kinds, WIDTH, K rounded up)
        T* by_b = nullptr;                  // (TILE, K rounded up)
        T* by_c = nullptr;                  // (kinds, K, WIDTH)
    };

    Packed<T> room(int blocks) { return {scratch_.take(a_.atoms * blocks * WIDTH<T>), blocks}; }

    Packed<T> packed(const Features<T>& x, int count, const Features<T>& y, int more) {
        const Packed<T> both = room(count + (y.data ? more : 0));
        pack(x, place_, a_.atoms, count, both, 0);
        if (y.data) pack(y, place_, a_.atoms, more, both, count);
        return both;
    }

    void write_senders(const Packed<T>& by_z) const {
        if (a_.by_s.data) unpack(by_z, 0, place_, a_.atoms, 2, a_.by_s);
        if (a_.by_v.data) unpack(by_z, 2, place_, a_.atoms, 3, a_.by_v);
    }

    template <typename Body>
    void tiles(Body body) const {
        for (int64_t p0 = 0; p0 < a_.pairs; p0 += TILE)
            body(p0, static_cast<int>(std::min<int64_t>(TILE, a_.pairs - p0)));
    }

    // Both directions of each pair, the second with the sign of its unit vector turned.
    template <typename Body>
    void halves(int64_t p0, int n, Body body) const {
        for (int t = 0; t < n; ++t) {
            const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p], place = 3 * (place_.member * a_.pairs + p);
            const T *u = a_.u + place, *u2 = a_.u2 ? a_.u2 + place : nullptr;
            for (int k = 0; k < 2; ++k) {
                body(i, j, u, u2, T(1), t, k);
                body(j, i, u, u2, T(-1), t, k);
            }
        }
    }

    Vector<T>& filter(T* w, int kind, int t, int k) const { return vector(w + (kind * TILE + t) * WIDTH<T>, k); }

    Sender sender(const Packed<T>& z, int64_t j, int k) const {
        Sender one = {z.at(j, 0, k), z.at(j, 1, k), {}};
        if (kinds_ == 3)
            for (int x = 0; x < 3; ++x) one.p[x] = z.at(j, 2 + x, k);
        return one;
    }

    Receiver receiver(int64_t i, int k) const {
        return {g_.at(i, 0, k), {g_.at(i, 1, k), g_.at(i, 2, k), g_.at(i, 3, k)}};
    }

    void add_products(T* w, int t, int k, const Sender& z, Vector<T> e, const Receiver& g) const {
        filter(w, 0, t, k) += z.r * e;
        filter(w, 1, t, k) += z.s * g.q;
        if (kinds_ == 3) filter(w, 2, t, k) += z.p[0] * g.m[0] + z.p[1] * g.m[1] + z.p[2] * g.m[2];
    }

    void add_weighted(Sender& wz, T* w, int t, int k, const Sender& z) const {
        wz.r += filter(w, 0, t, k) * z.r;
        wz.s += filter(w, 1, t, k) * z.s;
        if (kinds_ == 3)
            for (int x = 0; x < 3; ++x) wz.p[x] += filter(w, 2, t, k) * z.p[x];
    }

    // The item's columns of C, (kinds, K, WIDTH), with zeros beyond the last channel.
    const T* weights(const T* c) {
        const int64_t lines = kinds_ * a_.radial;
        T* own = scratch_.take(lines * WIDTH<T>);
        for (int64_t l = 0; l < lines; ++l)
            std::memcpy(own + l * WIDTH<T>, c + (place_.member * lines + l) * a_.channels + place_.channel,
                        place_.width * sizeof(T));
        return own;
    }

    // W = B C of a tile, (kinds, TILE, WIDTH).
    void filters(const T* b, const T* c, int64_t p0, int n, T* w, bool add) const {
        const int k = static_cast<int>(a_.radial);
        if (!add) std::memset(w, 0, 3 * TILE * WIDTH<T> * sizeof(T));
        for (int kind = 0; kind < kinds_; ++kind)
            product(b + (place_.member * a_.pairs + p0) * k, k, 1, c + kind * k * WIDTH<T>, w + kind * TILE * WIDTH<T>, WIDTH<T>, n, k);
    }

    int rounded() const { return (static_cast<int>(a_.radial) + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>; }

    T* transposed(const T* c) {
        T* out = scratch_.take(kinds_ * WIDTH<T> * rounded());
        for (int kind = 0; kind < kinds_; ++kind)
            for (int k = 0; k < a_.radial; ++k)
                for (int f = 0; f < WIDTH<T>; ++f)
                    out[(kind * WIDTH<T> + f) * rounded() + k] = c[(kind * a_.radial + k) * WIDTH<T> + f];
        return out;
    }

    Filters by_filters(const T* c, const T* c2) {
        Filters by;
        if (!a_.by_b && !a_.by_c) return by;
        by.w = scratch_.take(3 * TILE * WIDTH<T>);
        if (a_.b2 || c2) by.w2 = scratch_.take(3 * TILE * WIDTH<T>);
        if (a_.by_b) {
            by.c_t = transposed(c);
            if (c2) by.c2_t = transposed(c2);
            by.by_b = scratch_.take(TILE * rounded());
        }
        if (a_.by_c) by.by_c = scratch_.take(kinds_ * a_.radial * WIDTH<T>);
        return by;
    }

    void start(const Filters& by) const {
        if (by.w) std::memset(by.w, 0, 3 * TILE * WIDTH<T> * sizeof(T));
        if (by.w2) std::memset(by.w2, 0, 3 * TILE * WIDTH<T> * sizeof(T));
    }

    // From a tile's derivatives by filters to those by B and C, and from those along its pairs to those by u.
    void finish(const Filters& by, const Along* along, int64_t p0, int n) const {
        const int k = static_cast<int>(a_.radial);
        const int64_t here = place_.member * a_.pairs + p0, place = place_.channel / WIDTH<T> * a_.members * a_.pairs + here;
        if (a_.by_u)
            for (int t = 0; t < n; ++t)
                for (int x = 0; x < 3; ++x) a_.by_u[3 * (place + t) + x] = total<T>(along[t].x[x]);
        if (by.by_b) {
            const int stride = rounded();
            std::memset(by.by_b, 0, TILE * stride * sizeof(T));
            for (int column = 0; column < stride; column += WIDTH<T>)
                for (int kind = 0; kind < kinds_; ++kind) {
                    const int w = kind * TILE * WIDTH<T>, c = kind * WIDTH<T> * stride + column;
                    product(by.w + w, WIDTH<T>, 1, by.c_t + c, by.by_b + column, stride, n, WIDTH<T>);
                    if (by.c2_t) product(by.w2 + w, WIDTH<T>, 1, by.c2_t + c, by.by_b + column, stride, n, WIDTH<T>);
                }
            for (int t = 0; t < n; ++t) std::memcpy(a_.by_b + (place + t) * k, by.by_b + t * stride, k * sizeof(T));
        }
        if (by.by_c)
            for (int kind = 0; kind < kinds_; ++kind) {
                const int w = kind * TILE * WIDTH<T>;
                T* out = by.by_c + kind * k * WIDTH<T>;
                product(a_.b + here * k, 1, k, by.w + w, out, WIDTH<T>, k, n);
                if (by.w2 && a_.b2) product(a_.b2 + here * k, 1, k, by.w2 + w, out, WIDTH<T>, k, n);
            }
    }

    void write_weights(const Filters& by) const {
        if (!by.by_c) return;
        const int64_t lines = kinds_ * a_.radial;
        for (int64_t l = 0; l < lines; ++l)
            std::memcpy(a_.by_c + (place_.member * lines + l) * a_.channels + place_.channel, by.by_c + l * WIDTH<T>,
                        place_.width * sizeof(T));
    }

    const PainnArguments<T>& a_;
    const Place place_;
    const int kinds_;
    Scratch<T> scratch_;
    Packed<T> z_, g_;
};

// --------------------------------------------------------------------------------------------------------------- SchNet

template <typename T>
struct SchnetArguments {
    int64_t atoms, pairs, members, channels, threads;
    const int64_t *first, *second;
    Features<T> w, z, g, w2, z2;  // of filters, `atom` is the stride of pairs
    Features<T> by_w, by_z, by_g;
};

template <typename T>
class Schnet {
  public:
    Schnet(const SchnetArguments<T>& a, const Place& place) : a_(a), place_(place) {
        z_ = packed(a.z);
        g_ = packed(a.g);
    }

    void message() {
        const Packed<T> out = room();
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> w = filter(a_.w, p, k);
                out.at(i, 0, k) += w * z_.at(j, 0, k);
                out.at(j, 0, k) += w * z_.at(i, 0, k);
            }
        });
        unpack(out, 0, place_, a_.atoms, 1, a_.by_g);
    }

    void pullback() {
        const Packed<T> by_z = room();
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> g_i = g_.at(i, 0, k), g_j = g_.at(j, 0, k);
                if (a_.by_w.data) by_filter(p, k, z_.at(j, 0, k) * g_i + z_.at(i, 0, k) * g_j);
                if (a_.by_z.data) {
                    const Vector<T> w = filter(a_.w, p, k);
                    by_z.at(j, 0, k) += w * g_i;
                    by_z.at(i, 0, k) += w * g_j;
                }
            }
        });
        if (a_.by_z.data) unpack(by_z, 0, place_, a_.atoms, 1, a_.by_z);
    }

    void second() {
        const Packed<T> by_z = room(), by_g = room(), z2 = packed(a_.z2);
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> g_i = g_.at(i, 0, k), g_j = g_.at(j, 0, k);
                Vector<T> to_i = {}, to_j = {};
                if (z2.data) {
                    const Vector<T> w = filter(a_.w, p, k), z2_i = z2.at(i, 0, k), z2_j = z2.at(j, 0, k);
                    if (a_.by_w.data) by_filter(p, k, z2_j * g_i + z2_i * g_j);
                    to_i += w * z2_j, to_j += w * z2_i;
                }
                if (a_.w2.data) {
                    const Vector<T> w2 = filter(a_.w2, p, k);
                    to_i += w2 * z_.at(j, 0, k), to_j += w2 * z_.at(i, 0, k);
                    by_z.at(j, 0, k) += w2 * g_i;
                    by_z.at(i, 0, k) += w2 * g_j;
                }
                by_g.at(i, 0, k) += to_i;
                by_g.at(j, 0, k) += to_j;
            }
        });
        if (a_.by_z.data) unpack(by_z, 0, place_, a_.atoms, 1, a_.by_z);
        unpack(by_g, 0, place_, a_.atoms, 1, a_.by_g);
    }

  private:
    template <typename Body>
    void pairs(Body body) const {
        for (int64_t p = 0; p < a_.pairs; ++p) body(a_.first[p], a_.second[p], p);
    }

    Packed<T> room() { return {scratch_.take(a_.atoms * WIDTH<T>), 1}; }

    Packed<T> packed(const Features<T>& x) {
        if (!x.data) return {};
        const Packed<T> own = room();
        pack(x, place_, a_.atoms, 1, own, 0);
        return own;
    }

    // Channels of part k that there are.
    int64_t here(int k) const {
        return std::clamp<int64_t>(place_.width - k * Simd<T>::lanes, 0, Simd<T>::lanes);
    }

    T* row(const Features<T>& x, int64_t pair, int k) const {
        return x.data + place_.member * x.member + pair * x.atom + place_.channel + k * Simd<T>::lanes;
    }

    // Filters are used once: they are not packed.
    Vector<T> filter(const Features<T>& x, int64_t pair, int k) const {
        if (place_.width == WIDTH<T>) return *reinterpret_cast<const typename Simd<T>::Loose*>(row(x, pair, k));
        Vector<T> value = {};
        if (here(k)) std::memcpy(&value, row(x, pair, k), here(k) * sizeof(T));
        return value;
    }

    void by_filter(int64_t pair, int k, Vector<T> value) const {
        if (place_.width == WIDTH<T>)
            *reinterpret_cast<typename Simd<T>::Loose*>(row(a_.by_w, pair, k)) = value;
        else if (here(k))
            std::memcpy(row(a_.by_w, pair, k), &value, here(k) * sizeof(T));
    }

    const SchnetArguments<T>& a_;
    const Place place_;
    Scratch<T> scratch_;
    Packed<T> z_, g_;
};

template <typename T, template <typename> class Kernel, typename Arguments, typename Call>
void run(const Arguments& a, Call call) {
    each_item<T>(a, [&](const Place& place) {
        Kernel<T> kernel(a, place);
        call(kernel);
    });
}

}  // namespace

#define EXPORT(NAME, T)                                                                                    \
    extern "C" void painn_message_##NAME(const PainnArguments<T>* a) {                                     \
        run<T, Painn>(*a, [](auto& kernel) { kernel.message(); });                                         \
    }                                                                                                      \
    extern "C" void painn_pullback_##NAME(const PainnArguments<T>* a) {                                    \
        run<T, Painn>(*a, [](auto& kernel) { kernel.pullback(); });                                        \
    }                                                                                                      \
    extern "C" void painn_second_##NAME(const PainnArguments<T>* a) {                                      \
        run<T, Painn>(*a, [](auto& kernel) { kernel.second(); });                                          \
    }                                                                                                      \
    extern "C" void schnet_message_##NAME(const SchnetArguments<T>* a) {                                   \
        run<T, Schnet>(*a, [](auto& kernel) { kernel.message(); });                                        \
    }                                                                                                      \
    extern "C" void schnet_pullback_##NAME(const SchnetArguments<T>* a) {                                  \
        run<T, Schnet>(*a, [](auto& kernel) { kernel.pullback(); });                                       \
    }                                                                                                      \
    extern "C" void schnet_second_##NAME(const SchnetArguments<T>* a) {                                    \
        run<T, Schnet>(*a, [](auto& kernel) { kernel.second(); });                                         \
    }

EXPORT(float32, float)
EXPORT(float64, double)

extern "C" int width_float32() { return WIDTH<float>; }
extern "C" int width_float64() { return WIDTH<double>; }
