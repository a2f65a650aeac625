// SchNet for `Engine`: the network of backbones/schnet.py and its derivative.

#pragma once

#include "engine.hpp"

namespace {

template <typename T>
struct SchnetWeights {
    struct Layer {
        Linear<T> filters_in, filters_out, senders, senders_t;
        Mlp<T> update;
    };

    const T* embedding;
    std::vector<Layer> layers;
    Heads<T> heads;

    static int64_t count(const EngineArguments<T>& a) { return 1 + 9 * a.layers + 4 * (1 + a.heads); }

    SchnetWeights(const EngineArguments<T>& a, Layout<T>& layout)
        : embedding(layout.table(layout.next(a.species, a.channels))), layers(read(a, layout)), heads(a, layout) {}

  private:
    static std::vector<Layer> read(const EngineArguments<T>& a, Layout<T>& layout) {
        std::vector<Layer> layers;
        const int64_t f = a.channels;
        for (int64_t k = 0; k < a.layers; ++k) {
            Layer l;
            const Raw<T> in = layout.next(a.radial, f), in_bias = layout.next(1, f);
            const Raw<T> out = layout.next(f, f), out_bias = layout.next(1, f), senders = layout.next(f, f);
            l.filters_in = layout.forward(in, in_bias), l.filters_out = layout.forward(out, out_bias);
            l.senders = layout.forward(senders), l.senders_t = layout.backward(senders, false);
            l.update = layout.mlp(f, f, f, 1, true);
            layers.push_back(l);
        }
        return layers;
    }
};

template <typename T>
class SchnetEngine : Engine<T> {
    using Base = Engine<T>;
    using Base::a_, Base::act_, Base::blocks_, Base::each_atom, Base::f_, Base::fp_, Base::n_, Base::pairs_, Base::place,
        Base::layout_, Base::scratch_, Base::threads_;

    // One layer, and what its way back needs of its way there.
    struct Layer : SchnetWeights<T>::Layer {
        bool first;
        T *w, *fall;  // (blocks, P, WIDTH): filters and their derivatives by the length
        T *z, *slope;  // (blocks, N, WIDTH): senders; (N, Fp): slopes of the update's hidden layer
    };

  public:
    static constexpr bool enveloped = false;

    using Base::Base;

    void evaluate() {
        const SchnetWeights<T> weights(a_, layout_);
        for (const auto& layer : weights.layers) layers_.push_back(with_room(layer, layers_.empty()));
        x_ = scratch_.take(n_ * fp_), received_ = scratch_.take(n_ * fp_), by_z_ = scratch_.take(n_ * fp_);
        each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
            for (int64_t i = start; i < stop; ++i) std::memcpy(x_ + i * fp_, this->embedding(weights.embedding, i), fp_ * sizeof(T));
            send(layers_[0], start, stop, scratch);
        });
        for (int64_t k = 0; k < a_.layers; ++k) {
            filter(layers_[k]);
            messages(layers_[k]);
            each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
                update(layers_[k], start, stop, scratch);
                if (k < a_.layers - 1) return send(layers_[k + 1], start, stop, scratch);
                T *x = x_ + start * fp_, *by_x = scratch.take((stop - start) * fp_);
                this->head(weights.heads, x, start, stop - start, by_x, scratch);
                std::memcpy(x, by_x, (stop - start) * fp_ * sizeof(T));
                update_back(layers_[k], start, stop, scratch);
            });
        }
        by_distance_ = scratch_.zeros(a_.pairs), by_pair_ = scratch_.take(blocks_ * a_.pairs);
        for (int64_t k = a_.layers - 1; k >= 0; --k) {
            messages_back(layers_[k]);
            if (k == 0) break;
            each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
                T* by_z = scratch.take((stop - start) * fp_);
                load(by_z_, start, stop, by_z);
                apply(layers_[k].senders_t, by_z, fp_, x_ + start * fp_, fp_, stop - start, true);
                update_back(layers_[k - 1], start, stop, scratch);
            });
        }
        this->finish(by_distance_, nullptr);
    }

  private:
    Layer with_room(const typename SchnetWeights<T>::Layer& weights, bool first) {
        Layer l = {weights};
        l.first = first;
        l.w = scratch_.take(a_.pairs * fp_), l.fall = scratch_.take(a_.pairs * fp_);
        l.z = scratch_.take(n_ * fp_), l.slope = scratch_.take(n_ * fp_);
        return l;
    }

    // Rows (n, Fp) from and to blocks.
    void load(T* blocked, int64_t start, int64_t stop, T* rows) const {
        for (int64_t c = 0; c < blocks_; ++c)
            for (int64_t i = start; i < stop; ++i)
                std::memcpy(rows + (i - start) * fp_ + c * WIDTH<T>, place(blocked, 1, c, i), WIDTH<T> * sizeof(T));
    }

    void store(const T* rows, int64_t start, int64_t stop, T* blocked) const {
        for (int64_t c = 0; c < blocks_; ++c)
            for (int64_t i = start; i < stop; ++i)
                std::memcpy(place(blocked, 1, c, i), rows + (i - start) * fp_ + c * WIDTH<T>, WIDTH<T> * sizeof(T));
    }

    // Filters w = f (act(b V + c) V' + c') of radial functions b and cutoff function f, and their derivatives by the length,
    // which are carried along: they are products with the same matrices.
    void filter(const Layer& l) const {
        const Linear<T> slopes_in = {l.filters_in.panels, nullptr, l.filters_in.inner, fp_};
        const Linear<T> slopes_out = {l.filters_out.panels, nullptr, l.filters_out.inner, fp_};
        pieces(threads_, a_.pairs, FILTER_PIECE, [&](int64_t p0, int64_t p1) {
            const int64_t n = p1 - p0, size = n * fp_, row = pairs_.row;
            Scratch<T> scratch;
            T *pre = scratch.take(size), *hidden = scratch.take(size), *by_hidden = scratch.take(size);
            apply(l.filters_in, pairs_.basis + p0 * row, row, pre, fp_, n);
            apply(slopes_in, pairs_.slope + p0 * row, row, by_hidden, fp_, n);
            activate(act_, pre, hidden, size);
            chain(pre, by_hidden, size);
            T *w = pre, *by_w = scratch.take(size);
            apply(l.filters_out, hidden, fp_, w, fp_, n);
            apply(slopes_out, by_hidden, fp_, by_w, fp_, n);
            for (int64_t p = p0; p < p1; ++p)
                for (int64_t f = 0; f < fp_; f += Simd<T>::lanes) {
                    const int64_t from = (p - p0) * fp_ + f, to = (f / WIDTH<T> * a_.pairs + p) * WIDTH<T> + f % WIDTH<T>;
                    vector(l.w + to, 0) = pairs_.envelope[p] * vector(w + from, 0);
                    vector(l.fall + to, 0) = pairs_.envelope[p] * vector(by_w + from, 0) + pairs_.fall[p] * vector(w + from, 0);
                }
        });
    }

    void send(const Layer& l, int64_t start, int64_t stop, Scratch<T>& scratch) const {
        T* z = scratch.take((stop - start) * fp_);
        apply(l.senders, x_ + start * fp_, fp_, z, fp_, stop - start);
        store(z, start, stop, l.z);
    }

    void messages(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            const T *w = l.w + c * a_.pairs * WIDTH<T>, *z = place(l.z, 1, c, 0);
            T* out = place(received_, 1, c, 0);
            std::memset(out, 0, n_ * WIDTH<T> * sizeof(T));
            for (int64_t p = 0; p < a_.pairs; ++p) {
                const int64_t i = a_.first[p] * WIDTH<T>, j = a_.second[p] * WIDTH<T>;
                for (int k = 0; k < 2; ++k) {
                    const Vector<T> filter = vector(w + p * WIDTH<T>, k);
                    vector(out + i, k) += filter * vector(z + j, k);
                    vector(out + j, k) += filter * vector(z + i, k);
                }
            }
        });
    }

    // From derivatives by what was received to those by senders and, added, by lengths.
    void messages_back(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            const T *w = l.w + c * a_.pairs * WIDTH<T>, *fall = l.fall + c * a_.pairs * WIDTH<T>, *z = place(l.z, 1, c, 0);
            const T* g = place(received_, 1, c, 0);
            T *by_z = place(by_z_, 1, c, 0), *by_pair = by_pair_ + c * a_.pairs;
            std::memset(by_z, 0, n_ * WIDTH<T> * sizeof(T));
            for (int64_t p = 0; p < a_.pairs; ++p) {
                const int64_t i = a_.first[p] * WIDTH<T>, j = a_.second[p] * WIDTH<T>;
                Vector<T> by_length = {};
                for (int k = 0; k < 2; ++k) {
                    const Vector<T> g_i = vector(g + i, k), g_j = vector(g + j, k), filter = vector(w + p * WIDTH<T>, k);
                    by_length += vector(fall + p * WIDTH<T>, k) * (vector(z + j, k) * g_i + vector(z + i, k) * g_j);
                    if (l.first) continue;
                    vector(by_z + j, k) += filter * g_i;
                    vector(by_z + i, k) += filter * g_j;
                }
                by_pair[p] = total<T>(by_length);
            }
        });
        pieces(threads_, a_.pairs, 1024, [&](int64_t start, int64_t stop) {
            for (int64_t c = 0; c < blocks_; ++c)
                for (int64_t p = start; p < stop; ++p) by_distance_[p] += by_pair_[c * a_.pairs + p];
        });
    }

    void update(const Layer& l, int64_t start, int64_t stop, Scratch<T>& scratch) const {
        const int64_t n = stop - start;
        T *m = scratch.take(n * fp_), *a = scratch.take(n * fp_), *slope = l.slope + start * fp_, *x = x_ + start * fp_;
        load(received_, start, stop, m);
        apply(l.update.in, m, fp_, slope, fp_, n);
        activate(act_, slope, a, n * fp_);
        apply(l.update.out, a, fp_, m, fp_, n);
        for (int64_t k = 0; k < n * fp_; k += Simd<T>::lanes) vector(x + k, 0) += vector(m + k, 0);
    }

    // Derivatives by what was received from those by the features, which stay as they are.
    void update_back(const Layer& l, int64_t start, int64_t stop, Scratch<T>& scratch) const {
        const int64_t n = stop - start;
        T *by_a = scratch.take(n * fp_), *by_m = scratch.take(n * fp_);
        apply(l.update.out_t, x_ + start * fp_, fp_, by_a, fp_, n);
        chain(l.slope + start * fp_, by_a, n * fp_);
        apply(l.update.in_t, by_a, fp_, by_m, fp_, n);
        store(by_m, start, stop, received_);
    }

    static constexpr int64_t FILTER_PIECE = 60;  // pairs

    std::vector<Layer> layers_;
    T* x_ = nullptr;                             // (N, Fp): the features, later the derivatives by them
    T *received_ = nullptr, *by_z_ = nullptr;    // (blocks, N, WIDTH): messages, later the derivatives by them; by senders
    T *by_distance_ = nullptr, *by_pair_ = nullptr;  // (P,), and of a layer (blocks, P)
};

}  // namespace
