// PaiNN for `Gradient`: the network of backbones/painn.py with its rates of change, and the way back through both.

#pragma once

#include "engine_painn.hpp"
#include "gradient.hpp"
#include "painn_twins.hpp"

namespace {

template <typename T>
class PainnGradient : Gradient<T> {
    using Base = Gradient<T>;
    using Base::a_, Base::act_, Base::blocks_, Base::by_pair_, Base::each_atom, Base::f_, Base::fp_, Base::layout_,
        Base::n_, Base::pairs_, Base::place, Base::rate_, Base::scratch_, Base::threads_, Base::turn_;

    static constexpr int64_t RECEIVER = 8;

    // Weights, and twins of all atoms: kinds and parts are blocks of Fp channels, vectors are (N, 2, 3, Fp).
    struct Layer : PainnWeights<T>::Layer {
        int64_t number, senders;
        T *q, *mu, *h, *s, *x, *z;               // before the messages, the context's layers, senders in blocks
        T *q2, *mu2, *vw, *norm, *h2, *s2, *abd;  // after the messages, and the mixing's layers
    };

  public:
    static constexpr bool enveloped = true;

    PainnGradient(const EngineArguments<T>& a, const Pairs<T>& pairs, const int64_t* species, int64_t member, int threads)
        : Base(a, pairs, species, member, threads, PainnWeights<T>::count(a)) {}

    void differentiate() {
        const PainnWeights<T> weights(a_, layout_);
        for (const auto& layer : weights.layers) layers_.push_back(with_room(layer, layers_.size()));
        state_ = scratch_.take(blocks_ * n_ * RECEIVER * WIDTH<T>), by_z_ = scratch_.take(blocks_ * n_ * 10 * WIDTH<T>);
        T* last = scratch_.take(2 * n_ * fp_);
        by_x_ = scratch_.take(6 * n_ * fp_), by_h_ = scratch_.take(2 * n_ * fp_);
        by_abd_ = scratch_.take(6 * n_ * fp_), by_h2_ = scratch_.take(2 * n_ * fp_), by_vw_ = scratch_.take(12 * n_ * fp_);
        by_q_ = scratch_.take(2 * n_ * fp_), by_mu_ = scratch_.zeros(6 * n_ * fp_);
        each_atom([&](int64_t start, int64_t stop, Scratch<T>&) {
            for (int64_t i = start; i < stop; ++i) {
                std::memcpy(layers_[0].q + 2 * i * fp_, this->embedding(weights.embedding, i), fp_ * sizeof(T));
                std::memset(layers_[0].q + (2 * i + 1) * fp_, 0, fp_ * sizeof(T));
            }
            before_messages(layers_[0], start, stop);
        });
        for (int64_t k = 0; k < a_.layers; ++k) {
            messages(layers_[k]);
            Layer* next = k < a_.layers - 1 ? &layers_[k + 1] : nullptr;
            each_atom([&](int64_t start, int64_t stop, Scratch<T>&) {
                mix(layers_[k], start, stop, next ? next->q : last, next ? next->mu : nullptr);
                if (next) before_messages(*next, start, stop);
            });
        }
        this->head_back(weights.heads, last, by_q_, 1 + 11 * a_.layers);
        each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) { mix_back(layers_.back(), start, stop, scratch); });
        for (int64_t k = a_.layers - 1; k >= 0; --k) {
            mix_weights(layers_[k]);
            messages_back(layers_[k]);
            if (k == 0 && !a_.by_weights) break;
            each_atom([&](int64_t start, int64_t stop, Scratch<T>& scratch) {
                before_messages_back(layers_[k], start, stop);
                if (k > 0) mix_back(layers_[k - 1], start, stop, scratch);
            });
            context_weights(layers_[k]);
        }
        this->embedding_back(by_q_);
        this->positions_back();
    }

  private:
    Layer with_room(const typename PainnWeights<T>::Layer& weights, int64_t number) {
        Layer l = {weights};
        const int64_t twins = 2 * n_ * fp_;
        l.number = number, l.senders = number == 0 ? 2 : 10;
        l.q = scratch_.take(twins), l.h = scratch_.take(twins), l.s = scratch_.take(twins);
        l.mu = number == 0 ? nullptr : scratch_.take(3 * twins);
        l.x = scratch_.take(l.kinds * twins), l.z = scratch_.take(blocks_ * n_ * l.senders * WIDTH<T>);
        l.q2 = scratch_.take(twins), l.mu2 = scratch_.take(3 * twins), l.vw = scratch_.take(6 * twins);
        l.norm = scratch_.take(twins), l.h2 = scratch_.take(twins), l.s2 = scratch_.take(twins);
        l.abd = scratch_.take(l.parts * twins);
        return l;
    }

    // Calls body(atom, channel) for each vector of channels of a piece.
    template <typename Body>
    void each(int64_t start, int64_t stop, Body body) const {
        for (int64_t i = start; i < stop; ++i)
            for (int64_t f = 0; f < fp_; f += Simd<T>::lanes) body(i, f);
    }

    static Vector<T>& at(T* row, int64_t f) { return vector(row + f, 0); }
    static const Vector<T>& at(const T* row, int64_t f) { return vector(row + f, 0); }

    // Row of an atom's twin (0 or 1) in (N, 2, Fp), and of a component of its vector in (N, 2, 3, Fp).
    T* one(T* rows, int64_t i, int twin) const { return rows + (2 * i + twin) * fp_; }
    T* three(T* rows, int64_t i, int twin, int x) const { return rows + ((2 * i + twin) * 3 + x) * fp_; }

    Vector<T>& blocked(T* features, int64_t kinds, int64_t atom, int64_t kind, int64_t f) const {
        return vector(place(features, kinds, f / WIDTH<T>, atom) + kind * WIDTH<T> + f % WIDTH<T>, 0);
    }

    // Receivers' features, or derivatives by them, from and to blocks.
    void load(int64_t start, int64_t stop, T* q, T* mu) const {
        each(start, stop, [&](int64_t i, int64_t f) {
            for (int twin = 0; twin < 2; ++twin) {
                at(one(q, i, twin), f) = blocked(state_, RECEIVER, i, 4 * twin, f);
                for (int x = 0; x < 3; ++x) at(three(mu, i, twin, x), f) = blocked(state_, RECEIVER, i, 4 * twin + 1 + x, f);
            }
        });
    }

    void store(int64_t start, int64_t stop, T* q, T* mu) const {
        each(start, stop, [&](int64_t i, int64_t f) {
            for (int twin = 0; twin < 2; ++twin) {
                blocked(state_, RECEIVER, i, 4 * twin, f) = at(one(q, i, twin), f);
                for (int x = 0; x < 3; ++x)
                    blocked(state_, RECEIVER, i, 4 * twin + 1 + x, f) = mu ? at(three(mu, i, twin, x), f) : Vector<T>{};
            }
        });
    }

    void before_messages(const Layer& l, int64_t start, int64_t stop) const {
        const int64_t n = stop - start, here = 2 * start * fp_, width = l.kinds * fp_;
        this->apply_twins(l.context.in, l.q + here, fp_, l.h + here, n);
        this->activate_twins(act_, l.h + here, l.s + here, n, fp_);
        this->apply_twins(l.context.out, l.s + here, fp_, l.x + 2 * start * width, n);
        each(start, stop, [&](int64_t i, int64_t f) {
            for (int twin = 0; twin < (l.mu ? 2 : 1); ++twin) {
                const T* rsv = l.x + (2 * i + twin) * width;
                for (int kind = 0; kind < 2; ++kind) blocked(l.z, l.senders, i, 5 * twin + kind, f) = at(rsv + kind * fp_, f);
            }
            if (!l.mu) return;
            const Vector<T> v = at(l.x + 2 * i * width + 2 * fp_, f), rate = at(l.x + (2 * i + 1) * width + 2 * fp_, f);
            for (int x = 0; x < 3; ++x) {
                const Vector<T> mu = at(three(l.mu, i, 0, x), f);
                blocked(l.z, l.senders, i, 2 + x, f) = v * mu;
                blocked(l.z, l.senders, i, 7 + x, f) = rate * mu + v * at(three(l.mu, i, 1, x), f);
            }
        });
        store(start, stop, l.q, l.mu);
    }

    // From derivatives by senders and by the features after the messages to those by the features before them.
    void before_messages_back(const Layer& l, int64_t start, int64_t stop) const {
        const int64_t n = stop - start, here = 2 * start * fp_, width = l.kinds * fp_;
        load(start, stop, by_q_, by_mu_);
        each(start, stop, [&](int64_t i, int64_t f) {
            T *by = by_x_ + 2 * i * width, *by_rate = by + width;
            for (int kind = 0; kind < 2; ++kind) {
                at(by + kind * fp_, f) = blocked(by_z_, l.senders, i, kind, f);
                at(by_rate + kind * fp_, f) = l.mu ? blocked(by_z_, l.senders, i, 5 + kind, f) : Vector<T>{};
            }
            if (!l.mu) return;
            const Vector<T> v = at(l.x + 2 * i * width + 2 * fp_, f), rate = at(l.x + (2 * i + 1) * width + 2 * fp_, f);
            Vector<T> by_v = {}, by_v_rate = {};
            for (int x = 0; x < 3; ++x) {
                const Vector<T> p = blocked(by_z_, l.senders, i, 2 + x, f), p_rate = blocked(by_z_, l.senders, i, 7 + x, f);
                const Vector<T> mu = at(three(l.mu, i, 0, x), f);
                by_v += p * mu + p_rate * at(three(l.mu, i, 1, x), f);
                by_v_rate += p_rate * mu;
                at(three(by_mu_, i, 0, x), f) += v * p + rate * p_rate;
                at(three(by_mu_, i, 1, x), f) += v * p_rate;
            }
            at(by + 2 * fp_, f) = by_v, at(by_rate + 2 * fp_, f) = by_v_rate;
        });
        apply(l.context.out_t, by_x_ + 2 * start * width, width, by_h_ + here, fp_, 2 * n);
        this->chain_twins(act_, l.h + here, by_h_ + here, n, fp_);
        apply(l.context.in_t, by_h_ + here, fp_, by_q_ + here, fp_, 2 * n, true);
    }

    void context_weights(const Layer& l) {
        const int64_t first = 1 + 11 * l.number;
        this->linear_back({l.q, fp_, f_}, {by_h_, fp_, f_, 1}, 2, first + 2, first + 3);
        this->linear_back({l.s, fp_, f_}, {by_x_, l.kinds * fp_, f_, l.kinds}, 2, first + 4, first + 5);
    }

    template <int KINDS>
    PainnTwins<T, KINDS> of_block(const Layer& l, int64_t block) const {
        const int64_t size = l.filters.inner * WIDTH<T>;
        return {a_, pairs_, rate_, turn_, l.filters.panels + block * size, blocks_ * size};
    }

    void messages(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            T *z = place(l.z, l.senders, c, 0), *out = place(state_, RECEIVER, c, 0);
            l.mu ? of_block<3>(l, c).message(z, out) : of_block<2>(l, c).message(z, out);
        });
    }

    void messages_back(const Layer& l) {
        Scratch<T> scratch;
        T* sums = a_.by_positions ? scratch.take(blocks_ * a_.pairs * 8) : nullptr;
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            T *z = place(l.z, l.senders, c, 0), *g = place(state_, RECEIVER, c, 0), *by_z = place(by_z_, l.senders, c, 0);
            T* by_pair = sums ? sums + c * a_.pairs * 8 : nullptr;
            Scratch<T> own;
            T* by_c = a_.by_weights ? own.zeros(l.kinds * pairs_.row * WIDTH<T>) : nullptr;
            std::memset(by_z, 0, n_ * l.senders * WIDTH<T> * sizeof(T));
            if (l.mu)
                of_block<3>(l, c).pullback(z, g, by_z, by_c, by_pair);
            else
                of_block<2>(l, c).pullback(z, g, a_.by_weights ? by_z : nullptr, by_c, by_pair);
            if (by_c) write_filters(l, c * WIDTH<T>, by_c);
        });
        for (int64_t c = 0; sums && c < blocks_; ++c)
            for (int64_t k = 0; k < 8 * a_.pairs; ++k) by_pair_[k] += sums[c * 8 * a_.pairs + k];
    }

    // Derivatives by the filters' weights and bias, from those by C (kinds, K + 1, WIDTH) of a block of channels.
    void write_filters(const Layer& l, int64_t channel, const T* by_c) const {
        T *to = this->by_weight(1 + 11 * l.number), *to_bias = this->by_weight(2 + 11 * l.number);
        const int64_t size = std::min<int64_t>(WIDTH<T>, f_ - channel) * sizeof(T);
        for (int64_t kind = 0; kind < l.kinds; ++kind)
            for (int64_t k = 0; k < pairs_.row; ++k) {
                const T* from = by_c + (kind * pairs_.row + k) * WIDTH<T>;
                T* row = k < a_.radial ? (to ? to + k * l.kinds * f_ : nullptr) : to_bias;
                if (row) std::memcpy(row + kind * f_ + channel, from, size);
            }
    }

    // v or w of μ's components.
    const T* v(const Layer& l, int64_t i, int twin, int x) const { return l.vw + ((2 * i + twin) * 3 + x) * 2 * fp_; }
    const T* w(const Layer& l, int64_t i, int twin, int x) const { return v(l, i, twin, x) + fp_; }

    // From the receivers' features to those after the mixing, q and mu; the latter may be null.
    void mix(const Layer& l, int64_t start, int64_t stop, T* q, T* mu) const {
        const int64_t n = stop - start, here = 2 * start * fp_;
        load(start, stop, l.q2, l.mu2);
        apply(l.mix, l.mu2 + 3 * here, fp_, l.vw + 6 * here, 2 * fp_, 6 * n);
        each(start, stop, [&](int64_t i, int64_t f) {
            Vector<T> square = Vector<T>{} + static_cast<T>(EPSILON), along = {};
            for (int x = 0; x < 3; ++x) {
                square += at(v(l, i, 0, x), f) * at(v(l, i, 0, x), f);
                along += at(v(l, i, 0, x), f) * at(v(l, i, 1, x), f);
            }
            for (int lane = 0; lane < Simd<T>::lanes; ++lane) square[lane] = std::sqrt(square[lane]);
            at(one(l.norm, i, 0), f) = square, at(one(l.norm, i, 1), f) = along / square;
        });
        this->apply_twins(l.in, l.q2 + here, fp_, l.h2 + here, n);
        this->apply_twins(l.norm_in, l.norm + here, fp_, l.h2 + here, n, true);
        this->activate_twins(act_, l.h2 + here, l.s2 + here, n, fp_);
        this->apply_twins(l.out, l.s2 + here, fp_, l.abd + l.parts * here, n);
        each(start, stop, [&](int64_t i, int64_t f) {
            const T *abd = l.abd + 2 * i * l.parts * fp_, *rate = abd + l.parts * fp_;
            const Inner d = inner(l, i, f);
            at(one(q, i, 0), f) = at(one(l.q2, i, 0), f) + at(abd, f) + at(abd + fp_, f) * d.value;
            at(one(q, i, 1), f) =
                at(one(l.q2, i, 1), f) + at(rate, f) + at(rate + fp_, f) * d.value + at(abd + fp_, f) * d.rate;
            for (int x = 0; mu && x < 3; ++x) {
                const Vector<T> part = at(abd + 2 * fp_, f), part_rate = at(rate + 2 * fp_, f);
                at(three(mu, i, 0, x), f) = at(three(l.mu2, i, 0, x), f) + part * at(w(l, i, 0, x), f);
                at(three(mu, i, 1, x), f) =
                    at(three(l.mu2, i, 1, x), f) + part_rate * at(w(l, i, 0, x), f) + part * at(w(l, i, 1, x), f);
            }
        });
    }

    // v · w and its rate.
    struct Inner {
        Vector<T> value, rate;
    };

    Inner inner(const Layer& l, int64_t i, int64_t f) const {
        Inner d = {};
        for (int x = 0; x < 3; ++x) {
            d.value += at(v(l, i, 0, x), f) * at(w(l, i, 0, x), f);
            d.rate += at(v(l, i, 1, x), f) * at(w(l, i, 0, x), f) + at(v(l, i, 0, x), f) * at(w(l, i, 1, x), f);
        }
        return d;
    }

    // From derivatives by the features after the mixing to those by the receivers', for the messages.
    void mix_back(const Layer& l, int64_t start, int64_t stop, Scratch<T>& scratch) const {
        const int64_t n = stop - start, here = 2 * start * fp_, width = l.parts * fp_;
        const bool last = l.parts == 2;
        each(start, stop, [&](int64_t i, int64_t f) {
            T *by = by_abd_ + 2 * i * width, *by_rate = by + width;
            const Vector<T> g = at(one(by_q_, i, 0), f), g_rate = at(one(by_q_, i, 1), f);
            const Inner d = inner(l, i, f);
            at(by, f) = g, at(by_rate, f) = g_rate;
            at(by + fp_, f) = g * d.value + g_rate * d.rate, at(by_rate + fp_, f) = g_rate * d.value;
            if (last) return;
            Vector<T> by_d = {}, by_d_rate = {};
            for (int x = 0; x < 3; ++x) {
                const Vector<T> m_rate = at(three(by_mu_, i, 1, x), f);
                by_d += at(three(by_mu_, i, 0, x), f) * at(w(l, i, 0, x), f) + m_rate * at(w(l, i, 1, x), f);
                by_d_rate += m_rate * at(w(l, i, 0, x), f);
            }
            at(by + 2 * fp_, f) = by_d, at(by_rate + 2 * fp_, f) = by_d_rate;
        });
        T* by_norm = scratch.take(2 * n * fp_);
        apply(l.out_t, by_abd_ + 2 * start * width, width, by_h2_ + here, fp_, 2 * n);
        this->chain_twins(act_, l.h2 + here, by_h2_ + here, n, fp_);
        apply(l.norm_in_t, by_h2_ + here, fp_, by_norm, fp_, 2 * n);
        each(start, stop, [&](int64_t i, int64_t f) {
            const T *abd = l.abd + 2 * i * width, *rate = abd + width, *by_n = by_norm + 2 * (i - start) * fp_;
            const Vector<T> g = at(one(by_q_, i, 0), f), g_rate = at(one(by_q_, i, 1), f);
            const Vector<T> by_inner = g * at(abd + fp_, f) + g_rate * at(rate + fp_, f), by_inner_rate = g_rate * at(abd + fp_, f);
            const Vector<T> over = T(1) / at(one(l.norm, i, 0), f), n_rate = at(one(l.norm, i, 1), f) * over;
            const Vector<T> by_n_rate = at(by_n + fp_, f) * over, by_square = at(by_n, f) * over - by_n_rate * n_rate;
            for (int x = 0; x < 3; ++x) {
                T *by = by_vw_ + (6 * i + x) * 2 * fp_, *by_rate = by + 6 * fp_;
                const Vector<T> v0 = at(v(l, i, 0, x), f), v1 = at(v(l, i, 1, x), f);
                const Vector<T> w0 = at(w(l, i, 0, x), f), w1 = at(w(l, i, 1, x), f);
                at(by, f) = by_inner * w0 + by_inner_rate * w1 + by_square * v0 + by_n_rate * v1;
                at(by_rate, f) = by_inner_rate * w0 + by_n_rate * v0;
                Vector<T> by_w = by_inner * v0 + by_inner_rate * v1, by_w_rate = by_inner_rate * v0;
                if (!last) {
                    const Vector<T> m = at(three(by_mu_, i, 0, x), f), m_rate = at(three(by_mu_, i, 1, x), f);
                    by_w += m * at(abd + 2 * fp_, f) + m_rate * at(rate + 2 * fp_, f);
                    by_w_rate += m_rate * at(abd + 2 * fp_, f);
                }
                at(by + fp_, f) = by_w, at(by_rate + fp_, f) = by_w_rate;
            }
        });
        apply(l.mix_t, by_vw_ + 6 * here, 2 * fp_, by_mu_ + 3 * here, fp_, 6 * n, !last);
        apply(l.in_t, by_h2_ + here, fp_, by_q_ + here, fp_, 2 * n, true);
        store(start, stop, by_q_, by_mu_);
    }

    void mix_weights(const Layer& l) {
        const int64_t first = 1 + 11 * l.number;
        this->linear_back({l.mu2, fp_, f_}, {by_vw_, 2 * fp_, f_, 2}, 6, first + 6, -1);
        this->linear_back({l.q2, fp_, f_}, {by_h2_, fp_, f_, 1}, 2, first + 7, first + 8);
        this->linear_back({l.norm, fp_, f_}, {by_h2_, fp_, f_, 1}, 2, first + 7, -1, f_);
        this->linear_back({l.s2, fp_, f_}, {by_abd_, l.parts * fp_, f_, l.parts}, 2, first + 9, first + 10);
    }

    std::vector<Layer> layers_;
    T *state_ = nullptr, *by_z_ = nullptr;   // blocks: receivers' features, later the derivatives by them; by senders
    T *by_q_ = nullptr, *by_mu_ = nullptr;   // derivatives by features, and by the results of the linear maps
    T *by_x_ = nullptr, *by_h_ = nullptr, *by_abd_ = nullptr, *by_h2_ = nullptr, *by_vw_ = nullptr;
};

}  // namespace
