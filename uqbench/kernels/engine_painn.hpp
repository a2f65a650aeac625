// PaiNN for `Engine`: the network of backbones/painn.py and its derivative.

#pragma once

#include "engine.hpp"
#include "painn.hpp"

namespace {

template <typename T>
class PainnEngine : Engine<T> {
    using Base = Engine<T>;
    using Base::a_, Base::act_, Base::f_, Base::fp_, Base::n_, Base::pairs_, Base::reader_, Base::scratch_, Base::take,
        Base::threads_;

    // What one layer's way back needs of its way there; kinds and parts are blocks of Fp channels.
    struct Layer {
        int kinds, parts;
        const T* filters;  // (kinds, K + 1, F)
        Mlp<T> context, mixing;
        Linear<T> norm_in, norm_in_t, mix, mix_t;
        T *q, *mu, *pre, *x, *p;                // before the messages: (N, Fp), (3, N, Fp), the MLP, v ⊙ μ
        T *vw, *norm, *mixed, *abd;             // (3, N, 2 Fp), (N, Fp), the MLP's hidden and last layer
    };

  public:
    using Base::Base;

    void evaluate() {
        this->read_geometry(true);
        T *q = this->embed(), *mu = nullptr;
        std::vector<Layer> layers;
        for (int64_t k = 0; k < a_.layers; ++k) {
            layers.push_back(read(k == 0, k == a_.layers - 1));
            interact(layers.back(), q, mu);
            mix(layers.back(), q, mu);
        }
        T *by_q = this->head(q), *by_mu = nullptr;
        const int64_t parts = fp_ / WIDTH<T>, row = pairs_.row;
        T *by_u = scratch_.zeros(parts * a_.pairs * 3), *by_distance = scratch_.zeros(a_.pairs);
        T *u_part = scratch_.take(parts * a_.pairs * 3), *b_part = scratch_.take(parts * a_.pairs * row);
        for (int64_t k = a_.layers - 1; k >= 0; --k) {
            by_mu = mix_back(layers[k], by_q, by_mu);
            by_mu = interact_back(layers[k], by_q, by_mu, u_part, b_part);
            pieces(threads_, a_.pairs, 512, [&](int64_t start, int64_t stop) {
                for (int64_t part = 0; part < parts; ++part)
                    for (int64_t p = start; p < stop; ++p) {
                        const int64_t place = part * a_.pairs + p;
                        for (int x = 0; x < 3; ++x) by_u[3 * place + x] += u_part[3 * place + x];
                        T sum = 0;
                        for (int64_t b = 0; b < row; ++b) sum += b_part[place * row + b] * pairs_.slope[p * row + b];
                        by_distance[p] += sum;
                    }
            });
        }
        this->write_vectors(by_distance, by_u, parts);
    }

  private:
    Layer read(bool first, bool last) {
        Layer l = {};
        l.kinds = first ? 2 : 3, l.parts = last ? 2 : 3;
        l.filters = reader_.plain();
        l.context = reader_.mlp(f_, f_, l.kinds * fp_, l.kinds * fp_);
        l.mix = reader_.linear(f_, 2 * fp_, false), l.mix_t = reader_.linear(2 * fp_, fp_, false);
        l.mixing = reader_.mlp(f_, f_, l.parts * fp_, l.parts * fp_);
        l.norm_in = reader_.linear(f_, fp_, false), l.norm_in_t = reader_.linear(f_, fp_, false);
        return l;
    }

    // Calls body(index) for each vector of rows (N, Fp).
    template <typename Body>
    void each(Body body) const {
        pieces(threads_, n_, 32, [&](int64_t i0, int64_t i1) {
            for (int64_t i = i0; i < i1; ++i)
                for (int64_t k = 0; k < fp_ / Simd<T>::lanes; ++k) body(i, k);
        });
    }

    PainnArguments<T> arguments(const Layer& l) const {
        PainnArguments<T> m = {};
        m.atoms = n_, m.pairs = a_.pairs, m.members = 1, m.channels = f_, m.radial = pairs_.row;
        m.threads = this->message_threads();
        m.first = a_.first, m.second = a_.second, m.u = pairs_.u, m.b = pairs_.basis, m.c = l.filters;
        m.s = {l.x, 0, fp_, l.kinds * fp_};
        if (l.mu) m.v = {l.p, 0, n_ * fp_, fp_};
        return m;
    }

    void interact(Layer& l, T*& q, T*& mu) {
        l.q = q, l.mu = mu, l.pre = take(n_ * fp_), l.x = take(n_ * l.kinds * fp_);
        T *a = take(n_ * fp_), *dq = take(n_ * fp_), *dmu = take(3 * n_ * fp_);
        apply(l.context.in, q, fp_, l.pre, fp_, n_, false, threads_);
        activate(act_, l.pre, a, n_ * fp_, threads_);
        apply(l.context.out, a, fp_, l.x, l.kinds * fp_, n_, false, threads_);
        if (mu) {
            l.p = take(3 * n_ * fp_);
            each([&](int64_t i, int64_t k) {
                const Vector<T> v = vector(l.x + (i * l.kinds + 2) * fp_, k);
                for (int x = 0; x < 3; ++x) vector(l.p + (x * n_ + i) * fp_, k) = v * vector(mu + (x * n_ + i) * fp_, k);
            });
        }
        PainnArguments<T> m = arguments(l);
        m.by_q = {dq, 0, 0, fp_}, m.by_m = {dmu, 0, n_ * fp_, fp_};
        run<T, Painn>(m, [](auto& kernel) { kernel.message(); });
        each([&](int64_t i, int64_t k) {
            vector(dq + i * fp_, k) += vector(q + i * fp_, k);
            if (mu)
                for (int x = 0; x < 3; ++x) vector(dmu + (x * n_ + i) * fp_, k) += vector(mu + (x * n_ + i) * fp_, k);
        });
        q = dq, mu = dmu;
    }

    // Derivatives by q, in place, and by μ, which is returned (null in the first layer), from those after the messages.
    T* interact_back(const Layer& l, T* by_q, T* by_mu, T* by_u, T* by_b) {
        PainnArguments<T> m = arguments(l);
        m.gq = {by_q, 0, 0, fp_}, m.gm = {by_mu, 0, n_ * fp_, fp_}, m.by_u = by_u, m.by_b = by_b;
        if (!l.mu) {
            run<T, Painn>(m, [](auto& kernel) { kernel.pullback(); });
            return nullptr;
        }
        T *by_x = take(n_ * l.kinds * fp_), *by_p = take(3 * n_ * fp_), *by_a = take(n_ * fp_);
        m.by_s = {by_x, 0, fp_, l.kinds * fp_}, m.by_v = {by_p, 0, n_ * fp_, fp_};
        run<T, Painn>(m, [](auto& kernel) { kernel.pullback(); });
        each([&](int64_t i, int64_t k) {
            const Vector<T> v = vector(l.x + (i * l.kinds + 2) * fp_, k);
            Vector<T> by_v = {};
            for (int x = 0; x < 3; ++x) {
                const int64_t here = (x * n_ + i) * fp_;
                by_v += vector(by_p + here, k) * vector(l.mu + here, k);
                vector(by_mu + here, k) += v * vector(by_p + here, k);
            }
            vector(by_x + (i * l.kinds + 2) * fp_, k) = by_v;
        });
        apply(l.context.out_t, by_x, l.kinds * fp_, by_a, fp_, n_, false, threads_);
        chain(act_, l.pre, by_a, n_ * fp_, threads_);
        apply(l.context.in_t, by_a, fp_, by_q, fp_, n_, true, threads_);
        return by_mu;
    }

    void mix(Layer& l, T*& q, T*& mu) {
        l.vw = take(3 * n_ * 2 * fp_), l.norm = take(n_ * fp_), l.mixed = take(n_ * fp_), l.abd = take(n_ * l.parts * fp_);
        T *a = take(n_ * fp_), *q_out = take(n_ * fp_), *mu_out = l.parts == 3 ? take(3 * n_ * fp_) : nullptr;
        apply(l.mix, mu, fp_, l.vw, 2 * fp_, 3 * n_, false, threads_);
        each([&](int64_t i, int64_t k) {
            Vector<T> square = Vector<T>{} + static_cast<T>(EPSILON);
            for (int x = 0; x < 3; ++x) {
                const Vector<T> v = vector(l.vw + (x * n_ + i) * 2 * fp_, k);
                square += v * v;
            }
            for (int lane = 0; lane < Simd<T>::lanes; ++lane) square[lane] = std::sqrt(square[lane]);
            vector(l.norm + i * fp_, k) = square;
        });
        apply(l.mixing.in, q, fp_, l.mixed, fp_, n_, false, threads_);
        apply(l.norm_in, l.norm, fp_, l.mixed, fp_, n_, true, threads_);
        activate(act_, l.mixed, a, n_ * fp_, threads_);
        apply(l.mixing.out, a, fp_, l.abd, l.parts * fp_, n_, false, threads_);
        each([&](int64_t i, int64_t k) {
            const T* abd = l.abd + i * l.parts * fp_;
            vector(q_out + i * fp_, k) = vector(q + i * fp_, k) + vector(abd, k) + vector(abd + fp_, k) * inner(l, i, k);
            if (mu_out)
                for (int x = 0; x < 3; ++x)
                    vector(mu_out + (x * n_ + i) * fp_, k) =
                        vector(mu + (x * n_ + i) * fp_, k) + vector(abd + 2 * fp_, k) * w(l, x, i, k);
        });
        q = q_out, mu = mu_out;
    }

    const Vector<T>& v(const Layer& l, int x, int64_t i, int64_t k) const {
        return vector(static_cast<const T*>(l.vw) + (x * n_ + i) * 2 * fp_, k);
    }

    const Vector<T>& w(const Layer& l, int x, int64_t i, int64_t k) const {
        return vector(static_cast<const T*>(l.vw) + (x * n_ + i) * 2 * fp_ + fp_, k);
    }

    Vector<T> inner(const Layer& l, int64_t i, int64_t k) const {
        return v(l, 0, i, k) * w(l, 0, i, k) + v(l, 1, i, k) * w(l, 1, i, k) + v(l, 2, i, k) * w(l, 2, i, k);
    }

    // Derivatives by q, in place, and by μ, which is returned, from those after the mixing; by_mu is null after the last.
    T* mix_back(const Layer& l, T* by_q, T* by_mu) {
        T *by_abd = take(n_ * l.parts * fp_), *by_a = take(n_ * fp_), *by_norm = take(n_ * fp_);
        T *by_vw = take(3 * n_ * 2 * fp_), *out = take(3 * n_ * fp_);
        each([&](int64_t i, int64_t k) {
            const Vector<T> g = vector(by_q + i * fp_, k);
            T* by = by_abd + i * l.parts * fp_;
            vector(by, k) = g;
            vector(by + fp_, k) = g * inner(l, i, k);
            if (l.parts == 3) {
                Vector<T> by_d = {};
                for (int x = 0; x < 3; ++x) by_d += vector(by_mu + (x * n_ + i) * fp_, k) * w(l, x, i, k);
                vector(by + 2 * fp_, k) = by_d;
            }
        });
        apply(l.mixing.out_t, by_abd, l.parts * fp_, by_a, fp_, n_, false, threads_);
        chain(act_, l.mixed, by_a, n_ * fp_, threads_);
        apply(l.norm_in_t, by_a, fp_, by_norm, fp_, n_, false, threads_);
        each([&](int64_t i, int64_t k) {
            const T* abd = l.abd + i * l.parts * fp_;
            const Vector<T> by_inner = vector(by_q + i * fp_, k) * vector(abd + fp_, k);
            const Vector<T> by_square = vector(by_norm + i * fp_, k) / vector(l.norm + i * fp_, k);
            for (int x = 0; x < 3; ++x) {
                T* by = by_vw + (x * n_ + i) * 2 * fp_;
                vector(by, k) = by_inner * w(l, x, i, k) + by_square * v(l, x, i, k);
                Vector<T> by_w = by_inner * v(l, x, i, k);
                if (l.parts == 3) by_w += vector(by_mu + (x * n_ + i) * fp_, k) * vector(abd + 2 * fp_, k);
                vector(by + fp_, k) = by_w;
                vector(out + (x * n_ + i) * fp_, k) = l.parts == 3 ? vector(by_mu + (x * n_ + i) * fp_, k) : Vector<T>{};
            }
        });
        apply(l.mix_t, by_vw, 2 * fp_, out, fp_, 3 * n_, true, threads_);
        apply(l.mixing.in_t, by_a, fp_, by_q, fp_, n_, true, threads_);
        return out;
    }
};

}  // namespace
