/* As much of an NVIDIA driver and runtime as autograd asks for: one device, on which nothing runs.
 *
 * Loaded before a CUDA build of torch, it lets fake tensors on cuda:0 go forward and backward on a
 * machine without a GPU. It bears the driver's own name, so that torch finds it in its place.
 */

typedef int status; /* 0: success */

status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
status cudaGetDevice(int *device) { *device = 0; return 0; }
status cudaSetDevice(int device) { (void)device; return 0; }

status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return 0;
}

status cudaStreamIsCapturing(void *stream, int *capturing) {
    (void)stream;
    *capturing = 0;
    return 0;
}

status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = 0; /* no context: torch then never switches devices */
    return 0;
}
