// What can go wrong between us and a GPU, as types a caller can tell apart.

/** No adapter answered, or it lacks what every kernel needs. */
export class NoAdapterError extends Error {
  override readonly name = "NoAdapterError";
}

/** The device is gone (driver reset, unplugged, killed); everything on it is lost. Open a new one and restore. */
export class DeviceLostError extends Error {
  override readonly name = "DeviceLostError";
}

/** A buffer did not fit. */
export class OutOfMemoryError extends Error {
  override readonly name = "OutOfMemoryError";
  /** Bytes that were asked for. */
  readonly bytes: number;

  constructor(label: string, bytes: number, why: string) {
    super(`buffer ${label} of ${bytes} bytes: ${why}`);
    this.bytes = bytes;
  }
}

/** A kernel that does not compile, or a call of it that WebGPU rejects. */
export class KernelError extends Error {
  override readonly name = "KernelError";
  /** Name of the kernel, or of the program when no single kernel is to blame. */
  readonly kernel: string;

  constructor(kernel: string, message: string) {
    super(`${kernel}: ${message}`);
    this.kernel = kernel;
  }
}
