// Vectors, small matrix products and packed rows that all kernels share.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

// Shared by all sources: the bytes that scratch memory takes, and the most that it took since `peak` was read.
namespace scratch {

inline std::atomic<int64_t> held{0}, peak{0};

inline void hold(int64_t bytes) {
    const int64_t now = held += bytes;
    int64_t before = peak;
    while (before < now && !peak.compare_exchange_weak(before, now)) {
    }
}

}  // namespace scratch

namespace {

template <typename T>
struct Simd {
    static constexpr int lanes = 64 / sizeof(T);
    static constexpr int width = 2 * lanes;
    typedef T Vector __attribute__((vector_size(64)));
    typedef T Loose __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T, int L>
struct Part {
    typedef T Vector __attribute__((vector_size(L * sizeof(T))));
};

template <typename T>
constexpr int WIDTH = Simd<T>::width;

// Rows of a product that are held in registers.
#ifdef __AVX512F__
constexpr int ROWS = 12;
#else
constexpr int ROWS = 3;
#endif

// Channels are adjacent; members, blocks and atoms are as far apart as the strides say.
template <typename T>
struct Features {
    T* data;
    int64_t member, block, atom;
};

template <typename T>
Vector<T>& vector(T* aligned, int64_t part) {
    return reinterpret_cast<Vector<T>*>(aligned)[part];
}

template <typename T>
const Vector<T>& vector(const T* aligned, int64_t part) {
    return reinterpret_cast<const Vector<T>*>(aligned)[part];
}

// The sum of all lanes: of both halves, of theirs, and so on.
template <typename T, int L = Simd<T>::lanes>
T total(typename Part<T, L>::Vector value) {
    if constexpr (L == 1) {
        return value[0];
    } else {
        typename Part<T, L / 2>::Vector halves[2];
        std::memcpy(halves, &value, sizeof value);
        return total<T, L / 2>(halves[0] + halves[1]);
    }
}

// out[r, :] = start[r, :] + sum over c of a[r, c] b[c, :], for WIDTH columns.
template <typename T, int R>
void product_rows(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row, const T* start,
                  int64_t start_row, T* out, int64_t out_row, int64_t inner) {
    // Unrolled by order: where a compiler does it late, the sums pass through memory.
    Vector<T> sums[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        sums[r][0] = vector(start + r * start_row, 0);
        sums[r][1] = vector(start + r * start_row, 1);
    }
    for (int64_t c = 0; c < inner; ++c) {
        const Vector<T> b0 = vector(b + c * b_row, 0), b1 = vector(b + c * b_row, 1);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const T factor = a[r * a_row + c * a_column];
            sums[r][0] += factor * b0;
            sums[r][1] += factor * b1;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        vector(out + r * out_row, 0) = sums[r][0];
        vector(out + r * out_row, 1) = sums[r][1];
    }
}

template <typename T, int R = ROWS>
void product_few(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row, const T* start,
                 int64_t start_row, T* out, int64_t out_row, int64_t rows, int64_t inner) {
    if (rows == R)
        product_rows<T, R>(a, a_row, a_column, b, b_row, start, start_row, out, out_row, inner);
    else if constexpr (R > 1)
        product_few<T, R - 1>(a, a_row, a_column, b, b_row, start, start_row, out, out_row, rows, inner);
}

// The same for any number of rows, in turns that are as equal as possible: each one reads all of b.
template <typename T>
void product(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row, const T* start, int64_t start_row,
             T* out, int64_t out_row, int64_t rows, int64_t inner) {
    for (int64_t turns = (rows + ROWS - 1) / ROWS, r = 0; turns > 0; --turns) {
        const int64_t now = (rows - r + turns - 1) / turns;
        product_few<T>(a + r * a_row, a_row, a_column, b, b_row, start + r * start_row, start_row, out + r * out_row,
                       out_row, now, inner);
        r += now;
    }
}

// The same with what is there already as the start.
template <typename T>
void add_product(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row, T* out, int64_t out_row,
                 int64_t rows, int64_t inner) {
    product(a, a_row, a_column, b, b_row, static_cast<const T*>(out), out_row, out, out_row, rows, inner);
}

// Memory for as long as this lives, aligned for vectors. Small pieces share a block: asking for memory takes longer than
// what is done with little of it.
template <typename T>
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { scratch::held -= bytes_; }

    T* take(size_t count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > BLOCK / 4) return reinterpret_cast<T*>(block(bytes));
        if (bytes > left_) next_ = block(left_ = BLOCK);
        char* taken = next_;
        next_ += bytes, left_ -= bytes;
        return reinterpret_cast<T*>(taken);
    }

    T* zeros(size_t count) {
        T* block = take(count);
        std::memset(static_cast<void*>(block), 0, count * sizeof(T));
        return block;
    }

  private:
    static constexpr size_t BLOCK = 1 << 16;
    struct Free {
        void operator()(char* block) const { std::free(block); }
    };

    char* block(size_t bytes) {
        blocks_.emplace_back(static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
        if (!blocks_.back()) throw std::bad_alloc();
        bytes_ += bytes;
        scratch::hold(bytes);
        return blocks_.back().get();
    }

    std::vector<std::unique_ptr<char, Free>> blocks_;
    char* next_ = nullptr;
    size_t left_ = 0;
    int64_t bytes_ = 0;
};

// An exception that leaves a thread of a parallel loop ends the process: it is kept until all threads are done.
class Exhaustion {
  public:
    template <typename Body>
    void within(Body body) {
        if (exhausted_.load(std::memory_order_relaxed)) return;
        try {
            body();
        } catch (const std::bad_alloc&) {
            exhausted_ = true;
        }
    }

    void raise() const {
        if (exhausted_) throw std::bad_alloc();
    }

  private:
    std::atomic<bool> exhausted_{false};
};

// What an exported function returns, as exceptions must not reach its caller: 1 where memory ran out, else 0.
template <typename Call>
int status_of(Call call) {
    try {
        call();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

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
    Exhaustion exhaustion;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(std::min<int64_t>(a.threads, items))) if (a.threads > 1)
    for (int64_t n = 0; n < items; ++n) {
        const int64_t channel = n % blocks * WIDTH<T>;
        exhaustion.within([&] { item({n / blocks, channel, std::min<int64_t>(WIDTH<T>, a.channels - channel)}); });
    }
    exhaustion.raise();
}

template <typename T, template <typename> class Kernel, typename Arguments, typename Call>
void run(const Arguments& a, Call call) {
    each_item<T>(a, [&](const Place& place) {
        Kernel<T> kernel(a, place);
        call(kernel);
    });
}

}  // namespace
