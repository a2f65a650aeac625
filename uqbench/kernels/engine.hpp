// Energies and their gradient by pair vectors of a potential, member by member, without autograd.

#pragma once

#include "layers.hpp"

namespace {

// Weights come as one list of pointers, in the order in which `Reader` is asked for them; see engine.py.
template <typename T>
struct EngineArguments {
    int64_t atoms, pairs, members, channels, layers, radial, hidden, threads;
    int64_t basis, activation, head_activation;
    double cutoff;
    const int64_t *first, *second, *species;
    const T *positions, *shifts;     // (N, 3), (P, 3)
    const T* const* weights;         // of all members, one after the other
    int64_t weights_of_member;
    T *energies, *latents, *forces, *by_vectors;  // (M, N), (M, N, F), (M, N, 3), (M, P, 3)
    double* closest;                              // (M,) shortest distance
};

template <typename T>
class Reader {
  public:
    explicit Reader(const T* const* next) : next_(next) {}

    const T* plain() { return *next_++; }

    // Panels and bias; `inner` rows of W, and columns rounded up by the caller.
    Linear<T> linear(int64_t inner, int64_t columns, bool bias = true) {
        const T* panels = plain();
        return {panels, bias ? plain() : nullptr, inner, columns};
    }

    // in (a -> b), out (b -> c), then both transposed; widths are actual on the inner side and padded on the other.
    Mlp<T> mlp(int64_t a, int64_t b, int64_t c, int64_t rows_of_c) {
        Mlp<T> m;
        m.in = linear(a, padded<T>(b)), m.out = linear(b, c);
        m.in_t = linear(b, padded<T>(a), false), m.out_t = linear(rows_of_c, padded<T>(b), false);
        return m;
    }

  private:
    const T* const* next_;
};

// What both networks have in common: geometry, head, and the way from radial derivatives to pair vectors.
template <typename T>
class Engine {
  public:
    Engine(const EngineArguments<T>& a, int64_t member, int threads)
        : a_(a), member_(member), threads_(threads), n_(a.atoms), f_(a.channels), fp_(padded<T>(a.channels)),
          act_(static_cast<Activation>(a.activation)), reader_(a.weights + member * a.weights_of_member) {}

  protected:
    T* take(int64_t count) { return f_ == fp_ ? scratch_.take(count) : scratch_.zeros(count); }

    // For less work, starting threads takes longer than the messages.
    int message_threads() const { return a_.pairs * f_ > 30000 ? threads_ : 1; }

    void read_geometry(bool enveloped) {
        const int64_t row = a_.radial + enveloped;
        pairs_ = {scratch_.take(a_.pairs),       scratch_.take(3 * a_.pairs), scratch_.take(a_.pairs * row),
                  scratch_.take(a_.pairs * row), scratch_.take(a_.pairs),     scratch_.take(a_.pairs), row};
        geometry(a_.positions, a_.shifts, a_.first, a_.second, a_.pairs, static_cast<Basis>(a_.basis), a_.radial,
                 a_.cutoff, enveloped, pairs_, threads_);
    }

    T* embed() {
        const T* rows = reader_.plain();
        T* q = take(n_ * fp_);
        for (int64_t i = 0; i < n_; ++i) std::memcpy(q + i * fp_, rows + a_.species[i] * fp_, fp_ * sizeof(T));
        return q;
    }

    // Atomic energies from the last features; returns their derivative by the features, (N, Fp).
    T* head(const T* q) {
        const int64_t h = a_.hidden, hp = padded<T>(h);
        const Mlp<T> m = reader_.mlp(f_, h, WIDTH<T>, 1);
        T *pre = take(n_ * hp), *a = take(n_ * hp), *e = scratch_.take(n_ * WIDTH<T>), *by = scratch_.zeros(n_ * hp);
        const Activation act = static_cast<Activation>(a_.head_activation);
        apply(m.in, q, fp_, pre, hp, n_, false, threads_);
        activate(act, pre, a, n_ * hp, threads_);
        apply(m.out, a, hp, e, int64_t(WIDTH<T>), n_, false, threads_);
        for (int64_t i = 0; i < n_; ++i) a_.energies[member_ * n_ + i] = e[i * WIDTH<T>];
        for (int64_t i = 0; i < n_; ++i)
            std::memcpy(a_.latents + (member_ * n_ + i) * f_, q + i * fp_, f_ * sizeof(T));
        const T one = 1;
        apply(m.out_t, &one, int64_t(0), by, hp, n_, false, threads_);
        chain(act, pre, by, n_ * hp, threads_);
        T* by_q = take(n_ * fp_);
        apply(m.in_t, by, hp, by_q, fp_, n_, false, threads_);
        return by_q;
    }

    // From derivatives by lengths (P,) and directions (parts, P, 3; or null) to those by the pair vectors.
    void write_vectors(const T* by_distance, const T* by_u, int64_t parts) {
        pieces(threads_, a_.pairs, 1024, [&](int64_t start, int64_t stop) {
            for (int64_t p = start; p < stop; ++p) {
                T g[3] = {}, along = 0;
                const T* u = pairs_.u + 3 * p;
                for (int64_t part = 0; by_u && part < parts; ++part)
                    for (int x = 0; x < 3; ++x) g[x] += by_u[3 * (part * a_.pairs + p) + x];
                for (int x = 0; x < 3; ++x) along += u[x] * g[x];
                T* out = a_.by_vectors + 3 * (member_ * a_.pairs + p);
                for (int x = 0; x < 3; ++x) out[x] = by_distance[p] * u[x] + (g[x] - along * u[x]) / pairs_.distance[p];
            }
        });
        T* forces = a_.forces + 3 * member_ * n_;
        std::memset(forces, 0, 3 * n_ * sizeof(T));
        double closest = std::numeric_limits<double>::infinity();
        for (int64_t p = 0; p < a_.pairs; ++p) {
            closest = std::min(closest, double(pairs_.distance[p]));
            for (int x = 0; x < 3; ++x) {
                const T by = a_.by_vectors[3 * (member_ * a_.pairs + p) + x];
                forces[3 * a_.first[p] + x] += by;
                forces[3 * a_.second[p] + x] -= by;
            }
        }
        a_.closest[member_] = closest;
    }

    const EngineArguments<T>& a_;
    const int64_t member_;
    const int threads_;
    const int64_t n_, f_, fp_;
    const Activation act_;
    Reader<T> reader_;
    Scratch<T> scratch_;
    Pairs<T> pairs_ = {};
};

// Members are shared out where there are enough of them, and computed one after the other with all threads otherwise.
template <typename T, typename Network>
void each_member(const EngineArguments<T>& a) {
    const bool outer = a.threads > 1 && a.members >= a.threads;
    const int threads = static_cast<int>(a.threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (outer)
    for (int64_t m = 0; m < a.members; ++m) Network(a, m, outer ? 1 : threads).evaluate();
}

}  // namespace
