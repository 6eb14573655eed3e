// All parameters in one launch: the gradients' global norm, clipping, and AdamW. The references are clip_grad_norm and
// AdamW in minigrad/optim/optimizer.py:
//
//     m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
//     w = w - lr weight_decay w        w = w - lr (m / c1) / (sqrt(v / c2) + eps),  c1 = 1 - beta1^t, c2 = 1 - beta2^t
//
// `tensors` has a line for every parameter, and `chunks` a line for every block: which parameter, and which part of it.
// A 16-bit parameter has a master in float32, which is what learns; w is the master, rounded. Its gradient is 16-bit
// too, or float32 where several have been added up.

struct Tensor {
    scalar *w;
    void *g;  // float, if g_is_float32, else scalar
    float *m, *v, *master;
    long long size, g_is_float32;
};

struct Chunk {
    int tensor, number;  // elements number CHUNK, number CHUNK + 1, … of the tensor
};

#define CHUNK 4096

__device__ __forceinline__ float gradient(const Tensor &own, long long i) {
    return own.g_is_float32 ? static_cast<const float *>(own.g)[i] : to_float(static_cast<const scalar *>(own.g)[i]);
}

#define EACH_ELEMENT(own, chunk, i)                                                                      \
    const long long start = (long long)chunk.number * CHUNK, end = min(start + CHUNK, (long long)own.size); \
    for (long long i = start + threadIdx.x; i < end; i += blockDim.x)

// squares[b] = the sum of the squares of the gradients in chunk b.
extern "C" __global__ void sum_squares(const Tensor *tensors, const Chunk *chunks, float *squares) {
    const Chunk chunk = chunks[blockIdx.x];
    const Tensor own = tensors[chunk.tensor];
    float sum = 0;
    EACH_ELEMENT(own, chunk, i) {
        const float g = gradient(own, i);
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// norm[0] = the square root of the sum of all squares, divided by the loss scale; norm[1] = what to multiply gradients
// with, so that they are divided by it too, and clipped. One block.
extern "C" __global__ void finish_norm(const float *squares, int number, float max_norm, float loss_scale,
                                       float *norm) {
    float sum = 0;
    for (int i = threadIdx.x; i < number; i += blockDim.x) sum += squares[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        norm[0] = sqrtf(sum) / loss_scale;
        const float factor = max_norm / (norm[0] + 1e-6f);
        norm[1] = (factor >= 1 ? 1.0f : factor) / loss_scale;  // NaN stays NaN, of which fminf would make 1
    }
}

// g = g norm[1], unless that is 1.
extern "C" __global__ void scale_gradients(const Tensor *tensors, const Chunk *chunks, const float *norm) {
    const float factor = norm[1];
    if (factor == 1) return;
    const Chunk chunk = chunks[blockIdx.x];
    const Tensor own = tensors[chunk.tensor];
    EACH_ELEMENT(own, chunk, i) {
        const float g = gradient(own, i) * factor;
        if (own.g_is_float32) {
            static_cast<float *>(own.g)[i] = g;
        } else {
            static_cast<scalar *>(own.g)[i] = to_scalar(g);
        }
    }
}

// numbers: lr, c1, sqrt(c2). They lie on the card, so that a captured step can be replayed with others.
extern "C" __global__ void adamw(const Tensor *tensors, const Chunk *chunks, const float *numbers, float beta1,
                                 float beta2, float eps, float weight_decay) {
    const Chunk chunk = chunks[blockIdx.x];
    const Tensor own = tensors[chunk.tensor];
    const float lr = numbers[0], c1 = numbers[1], root_c2 = numbers[2];
    EACH_ELEMENT(own, chunk, i) {
        const float g = gradient(own, i);
        const float m = beta1 * own.m[i] + (1 - beta1) * g;
        const float v = beta2 * own.v[i] + (1 - beta2) * g * g;
        float w = own.master ? own.master[i] : to_float(own.w[i]);
        w -= lr * weight_decay * w;
        w -= lr * (m / c1) / (sqrtf(v) / root_c2 + eps);
        own.m[i] = m;
        own.v[i] = v;
        if (own.master) own.master[i] = w;
        own.w[i] = to_scalar(w);
    }
}
