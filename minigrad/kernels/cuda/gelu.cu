// GELU, in the form with tanh. The reference is GELUTanh in minigrad/ops/activation.py:
//
//     y = x h    with h = (1 + tanh u)/2, u = c (x + a x^3), c = sqrt(2/pi), a = 0.044715
//     dy/dx = h + 2 x h (1 - h) du/dx    with du/dx = c (1 + 3 a x^2)
//
// Since (1 + tanh u)/2 = 1/(1 + e^(-2u)), h needs one exponential; for u far below 0 that is 1/inf = 0, as it should be.
// The backward computes h again from x: that is cheaper than to write the slope and to read it. Defined before:
//   WIDTH    elements in an access; n is a multiple of it

__device__ __forceinline__ float half_of_one_plus_tanh(float x) {
    const float u = 0.7978845608f * x * (1 + 0.044715f * x * x);
    return 1 / (1 + __expf(-2 * u));
}

typedef Pack<scalar, WIDTH> Elements;

extern "C" __global__ void gelu_forward(const scalar *x, long long n, scalar *y) {
    const long long start = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    if (start >= n) return;
    Elements own = load<WIDTH>(x + start);
    for (int i = 0; i < WIDTH; i++) {
        const float value = to_float(own.values[i]);
        own.values[i] = to_scalar(value * half_of_one_plus_tanh(value));
    }
    store<WIDTH>(y + start, own);
}

extern "C" __global__ void gelu_backward(const scalar *g, const scalar *x, long long n, scalar *dx) {
    const long long start = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    if (start >= n) return;
    Elements own = load<WIDTH>(x + start);
    const Elements upstream = load<WIDTH>(g + start);
    for (int i = 0; i < WIDTH; i++) {
        const float value = to_float(own.values[i]), h = half_of_one_plus_tanh(value);
        const float du_dx = 0.7978845608f * (1 + 3 * 0.044715f * value * value);
        own.values[i] = to_scalar(to_float(upstream.values[i]) * (h + 2 * (value * h) * (1 - h) * du_dx));
    }
    store<WIDTH>(dx + start, own);
}
