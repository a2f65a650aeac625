// What messages export to `native.py`.

#include "painn.hpp"
#include "schnet.hpp"

#define CALL(NAME, KERNEL, T, WHAT)                                                                  \
    extern "C" int NAME(const KERNEL##Arguments<T>* a) {                                             \
        return status_of([&] { run<T, KERNEL>(*a, [](auto& kernel) { kernel.WHAT(); }); });          \
    }

#define EXPORT(NAME, T)                                     \
    CALL(painn_message_##NAME, Painn, T, message)           \
    CALL(painn_pullback_##NAME, Painn, T, pullback)         \
    CALL(painn_second_##NAME, Painn, T, second)             \
    CALL(schnet_message_##NAME, Schnet, T, message)         \
    CALL(schnet_pullback_##NAME, Schnet, T, pullback)       \
    CALL(schnet_second_##NAME, Schnet, T, second)

EXPORT(float32, float)
EXPORT(float64, double)

extern "C" int width_float32() { return WIDTH<float>; }
extern "C" int width_float64() { return WIDTH<double>; }

// The most bytes of scratch memory since the last call.
extern "C" int64_t scratch_peak() { return scratch::peak.exchange(scratch::held); }
