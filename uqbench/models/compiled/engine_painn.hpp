// PaiNN for `Engine`: the network of backbones/painn.py and its derivative.

#pragma once

#include "painn_pairs.hpp"

namespace {

template <typename T>
struct PainnWeights {
    // kinds and parts are blocks of Fp channels.
    struct Layer {
        int64_t kinds, parts;
        Linear<T> filters;  // panels (kinds, blocks, K + 1, WIDTH)
        Mlp<T> context;
        Linear<T> mix, mix_t, in, in_t, norm_in, norm_in_t, out, out_t;  // of the mixing: in and norm_in are added
    };

    const T* embedding;
    std::vector<Layer> layers;
    Heads<T> heads;

    static int64_t count(const EngineArguments<T>& a) { return 1 + 11 * a.layers + 4 * (1 + a.heads); }

    PainnWeights(const EngineArguments<T>& a, Layout<T>& layout)
        : embedding(layout.table(layout.next(a.species, a.channels))), layers(read(a, layout)), heads(a, layout) {}

  private:
    static std::vector<Layer> read(const EngineArguments<T>& a, Layout<T>& layout) {
        std::vector<Layer> layers;
        const int64_t f = a.channels;
        for (int64_t k = 0; k < a.layers; ++k) {
            Layer l;
            l.kinds = k == 0 ? 2 : 3, l.parts = k == a.layers - 1 ? 2 : 3;
            const Raw<T> filters = layout.next(a.radial, f, l.kinds), constant = layout.next(1, f, l.kinds);
            l.filters = layout.forward(filters, {}, 1, constant);
            l.context = layout.mlp(f, f, f, l.kinds, true);
            const Raw<T> mix = layout.next(f, f, 2), in = layout.next(f, f), norm_in = layout.rest(in, f);
            const Raw<T> in_bias = layout.next(1, f), out = layout.next(f, f, l.parts), out_bias = layout.next(1, f, l.parts);
            l.mix = layout.forward(mix), l.mix_t = layout.backward(mix, true);
            l.in = layout.forward(in, in_bias), l.in_t = layout.backward(in, false);
            l.norm_in = layout.forward(norm_in), l.norm_in_t = layout.backward(norm_in, false);
            l.out = layout.forward(out, out_bias), l.out_t = layout.backward(out, true);
            layers.push_back(l);
        }
        return layers;
    }
};

template <typename T>
class PainnEngine : Engine<T> {
    using Base = Engine<T>;
    using Base::a_, Base::act_, Base::blocks_, Base::each_atom, Base::f_, Base::fp_, Base::n_, Base::pairs_, Base::place,
        Base::layout_, Base::scratch_, Base::threads_;

    // One layer, and what its way back needs of its way there: all atoms' rows.
    struct Layer : PainnWeights<T>::Layer {
        T *mu, *slope, *x;                       // before the messages: (N, 3, Fp), the MLP's slopes (N, Fp) and results
        T* z;                                    // senders (blocks, N, 2 or 5, WIDTH)
        T *vw, *norm, *mixed_slope, *abd;        // (N, 3, 2 Fp), (N, Fp), the MLP's slopes and results
    };

    static constexpr int64_t RECEIVER = 4;

  public:
    static constexpr bool enveloped = true;

    using Base::Base;

    void evaluate() {
        const PainnWeights<T> weights(a_, layout_);
        for (const auto& layer : weights.layers) layers_.push_back(with_room(layer));
        state_ = scratch_.take(blocks_ * n_ * RECEIVER * WIDTH<T>);
        by_z_ = scratch_.take(blocks_ * n_ * 5 * WIDTH<T>);
        each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
            T* q = scratch.take((stop - start) * fp_);
            for (int64_t i = start; i < stop; ++i) std::memcpy(q + (i - start) * fp_, this->embedding(weights.embedding, i), fp_ * sizeof(T));
            before_messages(layers_[0], start, stop, q, nullptr, scratch);
        });
        for (int64_t k = 0; k < a_.layers; ++k) {
            messages(layers_[k]);
            each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
                T *q = scratch.take((stop - start) * fp_), *mu = scratch.take((stop - start) * 3 * fp_);
                load(start, stop, q, mu);
                mix(layers_[k], start, stop, q, mu, scratch);
                if (k < a_.layers - 1) return before_messages(layers_[k + 1], start, stop, q, mu, scratch);
                T* by_q = scratch.take((stop - start) * fp_);
                this->head(weights.heads, q, start, stop - start, by_q, scratch);
                mix_back(layers_[k], start, stop, by_q, mu, scratch);
            });
        }
        by_distance_ = scratch_.zeros(a_.pairs), by_u_ = scratch_.zeros(3 * a_.pairs);
        by_pair_ = scratch_.take(blocks_ * a_.pairs * 4);
        for (int64_t k = a_.layers - 1; k >= 0; --k) {
            messages_back(layers_[k]);
            if (k == 0) break;
            each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
                T *by_q = scratch.take((stop - start) * fp_), *by_mu = scratch.take((stop - start) * 3 * fp_);
                load(start, stop, by_q, by_mu);
                before_messages_back(layers_[k], start, stop, by_q, by_mu, scratch);
                mix_back(layers_[k - 1], start, stop, by_q, by_mu, scratch);
            });
        }
        this->finish(by_distance_, by_u_);
    }

  private:
    Layer with_room(const typename PainnWeights<T>::Layer& weights) {
        Layer l = {weights};
        const bool first = l.kinds == 2;
        l.slope = scratch_.take(n_ * fp_), l.x = scratch_.take(n_ * l.kinds * fp_);
        l.mu = first ? nullptr : scratch_.take(n_ * 3 * fp_);
        l.z = scratch_.take(blocks_ * n_ * (first ? 2 : 5) * WIDTH<T>);
        l.vw = scratch_.take(n_ * 6 * fp_), l.norm = scratch_.take(n_ * fp_), l.mixed_slope = scratch_.take(n_ * fp_);
        l.abd = scratch_.take(n_ * l.parts * fp_);
        return l;
    }

    // Calls body(atom within the piece, first channel) for each vector of channels.
    template <typename Body>
    void each(int64_t n, Body body) const {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t f = 0; f < fp_; f += Simd<T>::lanes) body(i, f);
    }

    static Vector<T>& at(T* features, int64_t f) { return vector(features + f, 0); }
    static const Vector<T>& at(const T* features, int64_t f) { return vector(features + f, 0); }

    // The vector of channels from f on of one kind of an atom's blocked features.
    Vector<T>& blocked(T* features, int64_t kinds, int64_t atom, int64_t kind, int64_t f) const {
        return vector(place(features, kinds, f / WIDTH<T>, atom) + kind * WIDTH<T> + f % WIDTH<T>, 0);
    }

    void load(int64_t start, int64_t stop, T* q, T* mu) const {
        each(stop - start, [&](int64_t i, int64_t f) {
            at(q + i * fp_, f) = blocked(state_, RECEIVER, start + i, 0, f);
            for (int x = 0; x < 3; ++x) at(mu + (3 * i + x) * fp_, f) = blocked(state_, RECEIVER, start + i, 1 + x, f);
        });
    }

    void store(int64_t start, int64_t stop, const T* q, const T* mu) const {
        each(stop - start, [&](int64_t i, int64_t f) {
            blocked(state_, RECEIVER, start + i, 0, f) = at(q + i * fp_, f);
            for (int x = 0; x < 3; ++x)
                blocked(state_, RECEIVER, start + i, 1 + x, f) = mu ? at(mu + (3 * i + x) * fp_, f) : Vector<T>{};
        });
    }

    // Senders from the features (n, Fp) and (n, 3, Fp); μ is null, for zero, in the first layer.
    void before_messages(const Layer& l, int64_t start, int64_t stop, const T* q, const T* mu, Scratch<T>& scratch) const {
        const int64_t n = stop - start, kinds = mu ? 5 : 2;
        T *a = scratch.take(n * fp_), *slope = l.slope + start * fp_, *x = l.x + start * l.kinds * fp_;
        apply(l.context.in, q, fp_, slope, fp_, n);
        activate(act_, slope, a, n * fp_);
        apply(l.context.out, a, fp_, x, l.kinds * fp_, n);
        if (mu) std::memcpy(l.mu + start * 3 * fp_, mu, n * 3 * fp_ * sizeof(T));
        each(n, [&](int64_t i, int64_t f) {
            const T* rsv = x + i * l.kinds * fp_;
            for (int kind = 0; kind < 2; ++kind) blocked(l.z, kinds, start + i, kind, f) = at(rsv + kind * fp_, f);
            for (int c = 0; mu && c < 3; ++c)
                blocked(l.z, kinds, start + i, 2 + c, f) = at(rsv + 2 * fp_, f) * at(mu + (3 * i + c) * fp_, f);
        });
        store(start, stop, q, mu);
    }

    // From derivatives by senders and, in place, by the features after the messages to those by the features before.
    void before_messages_back(const Layer& l, int64_t start, int64_t stop, T* by_q, T* by_mu, Scratch<T>& scratch) const {
        const int64_t n = stop - start;
        T *by_x = scratch.take(n * 3 * fp_), *by_a = scratch.take(n * fp_);
        each(n, [&](int64_t i, int64_t f) {
            T* by = by_x + i * 3 * fp_;
            const T *rsv = l.x + (start + i) * 3 * fp_, *mu = l.mu + (start + i) * 3 * fp_;
            for (int kind = 0; kind < 2; ++kind) at(by + kind * fp_, f) = blocked(by_z_, 5, start + i, kind, f);
            Vector<T> by_v = {};
            for (int c = 0; c < 3; ++c) {
                const Vector<T> by_p = blocked(by_z_, 5, start + i, 2 + c, f);
                by_v += by_p * at(mu + c * fp_, f);
                at(by_mu + (3 * i + c) * fp_, f) += at(rsv + 2 * fp_, f) * by_p;
            }
            at(by + 2 * fp_, f) = by_v;
        });
        apply(l.context.out_t, by_x, 3 * fp_, by_a, fp_, n);
        chain(l.slope + start * fp_, by_a, n * fp_);
        apply(l.context.in_t, by_a, fp_, by_q, fp_, n, true);
    }

    template <int KINDS>
    PainnPairs<T, KINDS> of_block(const Layer& l, int64_t block) const {
        const int64_t size = l.filters.inner * WIDTH<T>;
        return {a_, pairs_, l.filters.panels + block * size, blocks_ * size};
    }

    void messages(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            T* out = place(state_, RECEIVER, c, 0);
            if (l.mu)
                of_block<3>(l, c).message(place(l.z, 5, c, 0), out);
            else
                of_block<2>(l, c).message(place(l.z, 2, c, 0), out);
        });
    }

    void messages_back(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            T *g = place(state_, RECEIVER, c, 0), *by_pair = by_pair_ + c * 4 * a_.pairs, *by_z = place(by_z_, 5, c, 0);
            if (!l.mu) return of_block<2>(l, c).pullback(place(l.z, 2, c, 0), g, nullptr, by_pair);
            std::memset(by_z, 0, n_ * 5 * WIDTH<T> * sizeof(T));
            of_block<3>(l, c).pullback(place(l.z, 5, c, 0), g, by_z, by_pair);
        });
        pieces(threads_, a_.pairs, 1024, [&](int64_t start, int64_t stop) {
            for (int64_t c = 0; c < blocks_; ++c)
                for (int64_t p = start; p < stop; ++p) {
                    const T* by = by_pair_ + 4 * (c * a_.pairs + p);
                    for (int x = 0; x < 3; ++x) by_u_[3 * p + x] += by[x];
                    by_distance_[p] += by[3];
                }
        });
    }

    // Mixing of an atom's features, in place.
    void mix(const Layer& l, int64_t start, int64_t stop, T* q, T* mu, Scratch<T>& scratch) const {
        const int64_t n = stop - start;
        T *vw = l.vw + start * 6 * fp_, *norm = l.norm + start * fp_, *slope = l.mixed_slope + start * fp_;
        T *abd = l.abd + start * l.parts * fp_, *a = scratch.take(n * fp_);
        apply(l.mix, mu, fp_, vw, 2 * fp_, 3 * n);
        each(n, [&](int64_t i, int64_t f) {
            Vector<T> square = Vector<T>{} + static_cast<T>(EPSILON);
            for (int x = 0; x < 3; ++x) square += at(v(vw, i, x), f) * at(v(vw, i, x), f);
            for (int lane = 0; lane < Simd<T>::lanes; ++lane) square[lane] = std::sqrt(square[lane]);
            at(norm + i * fp_, f) = square;
        });
        apply(l.in, q, fp_, slope, fp_, n);
        apply(l.norm_in, norm, fp_, slope, fp_, n, true);
        activate(act_, slope, a, n * fp_);
        apply(l.out, a, fp_, abd, l.parts * fp_, n);
        each(n, [&](int64_t i, int64_t f) {
            const T* parts = abd + i * l.parts * fp_;
            at(q + i * fp_, f) += at(parts, f) + at(parts + fp_, f) * inner(vw, i, f);
            for (int x = 0; l.parts == 3 && x < 3; ++x)
                at(mu + (3 * i + x) * fp_, f) += at(parts + 2 * fp_, f) * at(w(vw, i, x), f);
        });
    }

    const T* v(const T* vw, int64_t i, int x) const { return vw + (3 * i + x) * 2 * fp_; }
    const T* w(const T* vw, int64_t i, int x) const { return v(vw, i, x) + fp_; }

    Vector<T> inner(const T* vw, int64_t i, int64_t f) const {
        return at(v(vw, i, 0), f) * at(w(vw, i, 0), f) + at(v(vw, i, 1), f) * at(w(vw, i, 1), f) +
               at(v(vw, i, 2), f) * at(w(vw, i, 2), f);
    }

    // From derivatives by the features after the mixing, which are overwritten, to those before it, for the messages. After
    // the last mixing there is none by μ.
    void mix_back(const Layer& l, int64_t start, int64_t stop, T* by_q, T* by_mu, Scratch<T>& scratch) const {
        const int64_t n = stop - start;
        const bool last = l.parts == 2;
        const T *vw = l.vw + start * 6 * fp_, *abd = l.abd + start * l.parts * fp_, *norm = l.norm + start * fp_;
        T *by_abd = scratch.take(n * l.parts * fp_), *by_a = scratch.take(n * fp_), *by_norm = scratch.take(n * fp_);
        T* by_vw = scratch.take(n * 6 * fp_);
        each(n, [&](int64_t i, int64_t f) {
            const Vector<T> g = at(by_q + i * fp_, f);
            T* by = by_abd + i * l.parts * fp_;
            at(by, f) = g;
            at(by + fp_, f) = g * inner(vw, i, f);
            if (last) return;
            Vector<T> by_d = {};
            for (int x = 0; x < 3; ++x) by_d += at(by_mu + (3 * i + x) * fp_, f) * at(w(vw, i, x), f);
            at(by + 2 * fp_, f) = by_d;
        });
        apply(l.out_t, by_abd, l.parts * fp_, by_a, fp_, n);
        chain(l.mixed_slope + start * fp_, by_a, n * fp_);
        apply(l.norm_in_t, by_a, fp_, by_norm, fp_, n);
        each(n, [&](int64_t i, int64_t f) {
            const T* parts = abd + i * l.parts * fp_;
            const Vector<T> by_inner = at(by_q + i * fp_, f) * at(parts + fp_, f);
            const Vector<T> by_square = at(by_norm + i * fp_, f) / at(norm + i * fp_, f);
            for (int x = 0; x < 3; ++x) {
                T* by = by_vw + (3 * i + x) * 2 * fp_;
                at(by, f) = by_inner * at(w(vw, i, x), f) + by_square * at(v(vw, i, x), f);
                Vector<T> by_w = by_inner * at(v(vw, i, x), f);
                if (!last) by_w += at(by_mu + (3 * i + x) * fp_, f) * at(parts + 2 * fp_, f);
                at(by + fp_, f) = by_w;
            }
        });
        apply(l.mix_t, by_vw, 2 * fp_, by_mu, fp_, 3 * n, !last);
        apply(l.in_t, by_a, fp_, by_q, fp_, n, true);
        store(start, stop, by_q, by_mu);
    }

    std::vector<Layer> layers_;
    T *state_ = nullptr, *by_z_ = nullptr;  // receivers' features, later the derivatives by them; derivatives by senders'
    T *by_distance_ = nullptr, *by_u_ = nullptr, *by_pair_ = nullptr;  // sums (P,) and (P, 3); of a layer (blocks, P, 4)
};

}  // namespace
