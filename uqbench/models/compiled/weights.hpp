// Weights as the compiled networks read them: in panels of WIDTH columns, both ways, everything padded with zeros.

#pragma once

#include "layers.hpp"

namespace {

// A weight as Python has it, (rows, blocks * columns); null where nothing is to be filled.
template <typename T>
struct Raw {
    const T* data;
    int64_t rows, columns, blocks;

    // The block and the column of a padded (or not) result.
    T at(int64_t row, int64_t block, int64_t column) const { return data[(row * blocks + block) * columns + column]; }
};

// Goes through memory for laid-out weights, always in the same order: to measure it (`memory` null), to fill it from the
// weights in `raw`, or to find what it holds (`raw` null).
template <typename T>
class Layout {
  public:
    Layout(T* memory, const T* const* raw) : memory_(memory), raw_(raw) {}

    int64_t size() const { return size_; }

    // The next weight of the network.
    Raw<T> next(int64_t rows, int64_t columns, int64_t blocks = 1) {
        return {raw_ ? *raw_++ : nullptr, rows, columns, blocks};
    }

    // The rows of a weight that follow on its first ones.
    static Raw<T> rest(const Raw<T>& part, int64_t rows) {
        return {part.data ? part.data + part.rows * part.columns * part.blocks : nullptr, rows, part.columns, part.blocks};
    }

    // Rows padded to whole vectors.
    const T* table(const Raw<T>& w) {
        const int64_t width = padded<T>(w.columns);
        T* to = take(w.rows * width, width != w.columns);
        for (int64_t r = 0; w.data && r < w.rows; ++r)
            for (int64_t c = 0; c < width; c += WIDTH<T>) copy_row(w, r, 0, c, T(1), to + r * width + c);
        return to;
    }

    // The map by one weight (or, stacked, two) with the columns of each block padded.
    Linear<T> forward(const Raw<T>& w, const Raw<T>& bias = {}, T scale = 1, const Raw<T>& more = {}) {
        const int64_t width = padded<T>(w.columns), inner = w.rows + more.rows;
        T* to = take(inner * w.blocks * width, width != w.columns);
        for (int64_t block = 0; w.data && block < w.blocks; ++block)
            for (int64_t c = 0; c < width; c += WIDTH<T>) {
                T* panel = to + (block * width + c) * inner;
                for (int64_t r = 0; r < inner; ++r)
                    copy_row(r < w.rows ? w : more, r < w.rows ? r : r - w.rows, block, c, scale, panel + r * WIDTH<T>);
            }
        return {to, bias.columns ? biases(bias, scale) : nullptr, inner, w.blocks * width};
    }

    // The transposed map, of results that are padded or not.
    Linear<T> backward(const Raw<T>& w, bool from_padded, T scale = 1) {
        const int64_t width = from_padded ? padded<T>(w.columns) : w.columns, inner = w.blocks * width;
        T* to = take(inner * padded<T>(w.rows), width != w.columns || padded<T>(w.rows) != w.rows);
        for (int64_t c = 0; w.data && c < w.rows; c += WIDTH<T>)
            for (int64_t block = 0; block < w.blocks; ++block)
                for (int64_t column = 0; column < w.columns; ++column) {
                    T* line = to + c * inner + (block * width + column) * WIDTH<T>;
                    const int64_t lanes = std::min<int64_t>(WIDTH<T>, w.rows - c);
                    for (int64_t lane = 0; lane < lanes; ++lane) line[lane] = scale * w.at(c + lane, block, column);
                }
        return {to, nullptr, inner, padded<T>(w.rows)};
    }

    Mlp<T> mlp(int64_t inputs, int64_t hidden, int64_t columns, int64_t blocks, bool from_padded, T scale = 1) {
        const Raw<T> in = next(inputs, hidden), in_bias = next(1, hidden);
        const Raw<T> out = next(hidden, columns, blocks), out_bias = next(1, columns, blocks);
        return {forward(in, in_bias), forward(out, out_bias, scale), backward(in, false),
                backward(out, from_padded, scale)};
    }

  private:
    const T* biases(const Raw<T>& bias, T scale) {
        const int64_t width = padded<T>(bias.columns);
        T* to = take(bias.blocks * width, width != bias.columns);
        for (int64_t block = 0; bias.data && block < bias.blocks; ++block)
            for (int64_t c = 0; c < width; c += WIDTH<T>) copy_row(bias, 0, block, c, scale, to + block * width + c);
        return to;
    }

    // WIDTH columns of a row from `start` on; fewer at its end.
    static void copy_row(const Raw<T>& w, int64_t row, int64_t block, int64_t start, T scale, T* to) {
        const T* from = w.data + (row * w.blocks + block) * w.columns + start;
        const int64_t count = std::min<int64_t>(WIDTH<T>, w.columns - start);
        for (int64_t k = 0; k < count; ++k) to[k] = scale * from[k];
    }

    T* take(int64_t count, bool padding) {
        T* at = memory_ ? memory_ + size_ : nullptr;
        if (at && raw_ && padding) std::memset(at, 0, count * sizeof(T));
        size_ += padded<T>(count);
        return at;
    }

    T* memory_;
    const T* const* raw_;
    int64_t size_ = 0;
};

}  // namespace
