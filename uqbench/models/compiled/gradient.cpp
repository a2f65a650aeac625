// What the derivatives of the compiled networks export to `network.py`.

#include "network_painn.hpp"
#include "network_schnet.hpp"

#define EXPORT(NAME, T)                                                                                            \
    extern "C" void gradient_painn_##NAME(NetworkArguments<T>* a) { evaluate<Dual<T>, PainnNetwork>(*a); }           \
    extern "C" void gradient_schnet_##NAME(NetworkArguments<T>* a) { evaluate<Dual<T>, SchnetNetwork>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
