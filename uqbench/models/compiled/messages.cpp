// What messages export to `native.py`.

#include "painn.hpp"
#include "schnet.hpp"

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
