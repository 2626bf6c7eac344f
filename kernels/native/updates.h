/* The update rules of updates.py, which names their sources: new parameters and state from n gradients.
 *
 * UPDATE names the one that is compiled. The state of momentum and nesterov is a velocity, of adam a mean and a square,
 * of rmsprop a square. `rate` is the learning rate; adam's holds the bias corrections as well.
 */
static inline void momentum(float *__restrict p, float *__restrict velocity, float *unused, const float *__restrict g,
                            long n, float rate, float decay)
{
    for (long i = 0; i < n; i++) {
        velocity[i] = decay * velocity[i] - rate * g[i];
        p[i] += velocity[i];
    }
}

static inline void nesterov(float *__restrict p, float *__restrict velocity, float *unused, const float *__restrict g,
                            long n, float rate, float decay)
{
    for (long i = 0; i < n; i++) {
        velocity[i] = decay * velocity[i] - rate * g[i];
        p[i] += decay * velocity[i] - rate * g[i];
    }
}

static inline void adam(float *__restrict p, float *__restrict mean, float *__restrict square,
                        const float *__restrict g, long n, float rate, float decay)
{
    const float beta2 = 0.999f;
    for (long i = 0; i < n; i++) {
        mean[i] = decay * mean[i] + (1.0f - decay) * g[i];
        square[i] = beta2 * square[i] + (1.0f - beta2) * (g[i] * g[i]);
        p[i] -= rate * mean[i] / (__builtin_sqrtf(square[i]) + 1e-8f);
    }
}

static inline void rmsprop(float *__restrict p, float *__restrict square, float *unused, const float *__restrict g,
                           long n, float rate, float decay)
{
    for (long i = 0; i < n; i++) {
        square[i] = decay * square[i] + (1.0f - decay) * (g[i] * g[i]);
        p[i] -= rate * g[i] / __builtin_sqrtf(square[i] + 1e-6f);
    }
}
