// libcublas: the functions that libgpuarray loads, computed by OpenBLAS on the host when the stream executes them.

#include "stub.h"

STUB_API Result cuStreamSynchronize(void *stream);

namespace {

enum Status { OK = 0, NOT_INITIALIZED_ = 1, EXECUTION_FAILED = 13, NOT_SUPPORTED_ = 15 };

struct Handle {
    void *stream = nullptr;
    int pointer_mode = 0; // 0: scalars are on the host and read at the call; 1: on the device
};

// Scalar argument of a call, which is read when the stream executes the call.
template <class T> struct Scalar {
    T value;
    const T *place;

    Scalar(const Handle *handle, const T *given) : value(handle->pointer_mode ? 0 : *given),
        place(handle->pointer_mode ? given : nullptr) {}
    T operator()() const { return place ? *place : value; }
};

char letter(int operation) { return operation ? 'T' : 'N'; }

Status push(const Handle *handle, std::function<void()> work)
{
    return enqueue(handle->stream, true, std::move(work)) == SUCCESS ? OK : EXECUTION_FAILED;
}

} // namespace

#define ROUTINES(T, t)                                                                                                 \
    extern "C" void scipy_##t##gemm_(                                                                                  \
        const char *, const char *, const int *, const int *, const int *, const T *, const T *, const int *,          \
        const T *, const int *, const T *, T *, const int *);                                                          \
    extern "C" void scipy_##t##gemv_(                                                                                  \
        const char *, const int *, const int *, const T *, const T *, const int *, const T *, const int *, const T *,  \
        T *, const int *);                                                                                             \
    extern "C" void scipy_##t##ger_(                                                                                   \
        const int *, const int *, const T *, const T *, const int *, const T *, const int *, T *, const int *);        \
    extern "C" T scipy_##t##dot_(const int *, const T *, const int *, const T *, const int *);

ROUTINES(float, s)
ROUTINES(double, d)

#define CUBLAS(T, S, t)                                                                                                \
    STUB_API Status cublas##S##gemm_v2(                                                                                \
        Handle *handle, int ta, int tb, int m, int n, int k, const T *alpha, const T *A, int lda, const T *B, int ldb, \
        const T *beta, T *C, int ldc)                                                                                  \
    {                                                                                                                  \
        note("cublas" #S "gemm_v2 %d %d %d\n", m, n, k);                                                               \
        Scalar<T> a(handle, alpha), b(handle, beta);                                                                   \
        return push(handle, [=] {                                                                                      \
            char of_a = letter(ta), of_b = letter(tb);                                                                 \
            T alpha = a(), beta = b();                                                                                 \
            scipy_##t##gemm_(&of_a, &of_b, &m, &n, &k, &alpha, A, &lda, B, &ldb, &beta, C, &ldc);                      \
        });                                                                                                            \
    }                                                                                                                  \
    STUB_API Status cublas##S##gemv_v2(                                                                                \
        Handle *handle, int ta, int m, int n, const T *alpha, const T *A, int lda, const T *x, int incx,               \
        const T *beta, T *y, int incy)                                                                                 \
    {                                                                                                                  \
        note("cublas" #S "gemv_v2 %d %d\n", m, n);                                                                     \
        Scalar<T> a(handle, alpha), b(handle, beta);                                                                   \
        return push(handle, [=] {                                                                                      \
            char of_a = letter(ta);                                                                                    \
            T alpha = a(), beta = b();                                                                                 \
            scipy_##t##gemv_(&of_a, &m, &n, &alpha, A, &lda, x, &incx, &beta, y, &incy);                               \
        });                                                                                                            \
    }                                                                                                                  \
    STUB_API Status cublas##S##ger_v2(                                                                                 \
        Handle *handle, int m, int n, const T *alpha, const T *x, int incx, const T *y, int incy, T *A, int lda)       \
    {                                                                                                                  \
        note("cublas" #S "ger_v2 %d %d\n", m, n);                                                                      \
        Scalar<T> a(handle, alpha);                                                                                    \
        return push(handle, [=] {                                                                                      \
            T alpha = a();                                                                                             \
            scipy_##t##ger_(&m, &n, &alpha, x, &incx, y, &incy, A, &lda);                                              \
        });                                                                                                            \
    }                                                                                                                  \
    STUB_API Status cublas##S##dot_v2(                                                                                 \
        Handle *handle, int n, const T *x, int incx, const T *y, int incy, T *result)                                  \
    {                                                                                                                  \
        note("cublas" #S "dot_v2 %d\n", n);                                                                            \
        Status status = push(handle, [=] { *result = scipy_##t##dot_(&n, x, &incx, y, &incy); });                      \
        return status == OK && !handle->pointer_mode && cuStreamSynchronize(handle->stream) ? EXECUTION_FAILED         \
                                                                                            : status;                  \
    }                                                                                                                  \
    STUB_API Status cublas##S##gemmBatched(                                                                            \
        Handle *handle, int ta, int tb, int m, int n, int k, const T *alpha, const T *const A[], int lda,              \
        const T *const B[], int ldb, const T *beta, T *const C[], int ldc, int n_batches)                              \
    {                                                                                                                  \
        note("cublas" #S "gemmBatched %d %d %d %d\n", m, n, k, n_batches);                                             \
        Scalar<T> a(handle, alpha), b(handle, beta);                                                                   \
        return push(handle, [=] {                                                                                      \
            char of_a = letter(ta), of_b = letter(tb);                                                                 \
            T alpha = a(), beta = b();                                                                                 \
            for (int i = 0; i < n_batches; i++)                                                                        \
                scipy_##t##gemm_(&of_a, &of_b, &m, &n, &k, &alpha, A[i], &lda, B[i], &ldb, &beta, C[i], &ldc);         \
        });                                                                                                            \
    }                                                                                                                  \
    STUB_API Status cublas##S##gemmStridedBatched(                                                                     \
        Handle *handle, int ta, int tb, int m, int n, int k, const T *alpha, const T *A, int lda, long long stride_a,  \
        const T *B, int ldb, long long stride_b, const T *beta, T *C, int ldc, long long stride_c, int n_batches)      \
    {                                                                                                                  \
        note("cublas" #S "gemmStridedBatched %d %d %d %d\n", m, n, k, n_batches);                                      \
        Scalar<T> a(handle, alpha), b(handle, beta);                                                                   \
        return push(handle, [=] {                                                                                      \
            char of_a = letter(ta), of_b = letter(tb);                                                                 \
            T alpha = a(), beta = b();                                                                                 \
            for (int i = 0; i < n_batches; i++)                                                                        \
                scipy_##t##gemm_(&of_a, &of_b, &m, &n, &k, &alpha, A + i * stride_a, &lda, B + i * stride_b, &ldb,     \
                                 &beta, C + i * stride_c, &ldc);                                                       \
        });                                                                                                            \
    }

CUBLAS(float, S, s)
CUBLAS(double, D, d)

// float16 is not supported.
STUB_API Status cublasSgemmEx() { return NOT_SUPPORTED_; }
STUB_API Status cublasGemmEx() { return NOT_SUPPORTED_; }
STUB_API Status cublasHgemmStridedBatched() { return NOT_SUPPORTED_; }

STUB_API Status cublasCreate_v2(Handle **handle)
{
    *handle = new Handle;
    return OK;
}

STUB_API Status cublasDestroy_v2(Handle *handle)
{
    delete handle;
    return OK;
}

STUB_API Status cublasSetStream_v2(Handle *handle, void *stream)
{
    handle->stream = stream;
    return OK;
}

STUB_API Status cublasSetPointerMode_v2(Handle *handle, int mode)
{
    handle->pointer_mode = mode;
    return OK;
}

STUB_API Status cublasGetPointerMode_v2(Handle *handle, int *mode)
{
    *mode = handle->pointer_mode;
    return OK;
}

STUB_API Status cublasSetAtomicsMode(Handle *, int) { return OK; }
STUB_API Status cublasGetVersion_v2(Handle *, int *version)
{
    *version = 120903;
    return OK;
}
STUB_API int cublasGetProperty(int which, int *value)
{
    const int version[] = {12, 9, 3};
    if (which < 0 || which > 2)
        return 7;
    *value = version[which];
    return 0;
}
