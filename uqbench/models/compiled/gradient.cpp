// What the derivatives of the compiled networks export to `network.py`.

#include "network_painn.hpp"
#include "network_schnet.hpp"

#define CALL(NAME, T, ...) \
    extern "C" int NAME(NetworkArguments<T>* a) { return status_of([&] { __VA_ARGS__(*a); }); }

#define EXPORT(NAME, T)                                                 \
    CALL(gradient_painn_##NAME, T, evaluate<Dual<T>, PainnNetwork>)     \
    CALL(gradient_schnet_##NAME, T, evaluate<Dual<T>, SchnetNetwork>)

EXPORT(float32, float)
EXPORT(float64, double)
