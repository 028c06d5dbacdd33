// What a compute kernel is here, and what one call of it is.
//
// A kernel is WGSL text plus the declarations that bind it: `defineKernel` writes the `Params` struct and the
// `@binding` lines from the declaration, so a family's WGSL starts at its constants and `main`, and a call is checked
// against the declaration by the type system.
//
// Shapes are uniform parameters, never baked into the text: a model with forty matmul shapes compiles one matmul, and
// changing the freeze plan or the batch size compiles nothing. What changes the structure of a loop (a transpose, a
// fused activation, a head size that fixes a register array) is baked in and makes another kernel.
//
// A call is generic in what a buffer is: kernel tests pass GPU buffers, the trainer passes graph tensors and resolves
// them to buffers when it records a program.

/** Element types a tensor can have on the device. */
export type DType = "f32" | "f16" | "u32" | "i32";

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<DType, number>> = { f32: 4, f16: 2, u32: 4, i32: 4 };

export type ParamType = "u32" | "i32" | "f32";

/** How a kernel sees one storage buffer: `type` is the WGSL type behind the binding, e.g. `array<f32>`. */
export interface BufferDeclaration {
  readonly access: "read" | "read_write";
  readonly type: string;
  /** Bound for writing although it is only read: see {@link prefetched}. */
  readonly prefetched?: boolean;
}

/** A storage buffer the kernel only reads; `element` is an element type (`f32`) or a vector (`vec4f`) or a struct. */
export const read = (element: string): BufferDeclaration => ({ access: "read", type: `array<${element}>` });

/**
 * A storage buffer the kernel only reads, but well before it needs the values. Compilers move a load of what nobody can
 * write down to its first use, past barriers and all the work that should have hidden its latency (seen in what NVIDIA's
 * driver 580.159.04 makes of a prefetch), so the binding says that it can be written. A call must not bind the buffer twice.
 */
export const prefetched = (element: string): BufferDeclaration => ({ ...read(element), prefetched: true });

/** How a buffer is bound. */
export const boundAccess = (b: BufferDeclaration): BufferDeclaration["access"] =>
  b.prefetched ? "read_write" : b.access;

/** A storage buffer the kernel writes (and may read). */
export const write = (element: string): BufferDeclaration => ({ access: "read_write", type: `array<${element}>` });

/** A kernel as its family declares it. `P` and `B` are the names of its parameters and buffers. */
export interface Kernel<P extends string = string, B extends string = string> {
  /** Family and variant, e.g. `matmul_nt_tiled`; shown in every error and profile. */
  readonly name: string;
  readonly params: Readonly<Record<P, ParamType>>;
  readonly buffers: Readonly<Record<B, BufferDeclaration>>;
  /** Complete WGSL, entry point `main`. Two kernels with equal text share one pipeline. */
  readonly wgsl: string;
}

/** One dispatch of a kernel; `T` is whatever stands for a device buffer. */
export interface KernelCall<T> {
  readonly kernel: Kernel;
  readonly params: Readonly<Record<string, number>>;
  readonly buffers: Readonly<Record<string, T>>;
  readonly workgroups: readonly [number, number, number];
}

/** A step that is not a dispatch: fill a buffer with zero bytes. */
export interface ClearCall<T> {
  readonly clear: T;
}

/** One entry of a program, in execution order. */
export type Command<T> = KernelCall<T> | ClearCall<T>;

/**
 * Declares a kernel. `wgsl` holds everything after the bindings: constants, functions, and
 * `@compute @workgroup_size(…) fn main(…)`. In it, `params.NAME` are the parameters and each buffer is a global of its
 * own name. `enables` are directives that must stand first, e.g. `enable f16;`.
 */
export function defineKernel<P extends string, B extends string>(declaration: {
  name: string;
  params: Record<P, ParamType>;
  buffers: Record<B, BufferDeclaration>;
  enables?: string;
  wgsl: string;
}): Kernel<P, B> {
  const { name, params, buffers, enables = "", wgsl } = declaration;
  const fields = Object.entries<ParamType>(params).map(([field, type]) => `  ${field}: ${type},\n`);
  const bindings = Object.entries<BufferDeclaration>(buffers).map(
    ([field, b], i) => `@group(0) @binding(${i + 1}) var<storage, ${boundAccess(b)}> ${field}: ${b.type};\n`,
  );
  const head = fields.length
    ? `struct Params {\n${fields.join("")}}\n@group(0) @binding(0) var<uniform> params: Params;\n`
    : "";
  return { name, params, buffers, wgsl: `${enables}${head}${bindings.join("")}${wgsl}` };
}

/** Builds each kernel of a family once: the one that `make` gives for a key is given for that key from then on. */
export function kernelCache<K extends Kernel>(): (key: string, make: () => K) => K {
  const kernels = new Map<string, K>();
  return (key, make) => {
    const found = kernels.get(key) ?? make();
    kernels.set(key, found);
    return found;
  };
}

/**
 * `make` that builds the kernel for the same arguments, which are plain data, once: a graph asks for a kernel at every call,
 * and some texts are long.
 */
export function madeOnce<A extends readonly unknown[], K extends Kernel>(make: (...variant: A) => K): typeof make {
  const cached = kernelCache<K>();
  return (...variant) => cached(JSON.stringify(variant), () => make(...variant));
}

/** A call of `kernel`, its parameters and buffers checked by name at compile time. */
export function call<T, P extends string, B extends string>(
  kernel: Kernel<P, B>,
  params: Record<P, number>,
  buffers: Record<B, T>,
  workgroups: readonly [number, number?, number?],
): KernelCall<T> {
  const [x, y = 1, z = 1] = workgroups;
  return { kernel, params, buffers, workgroups: [x, y, z] };
}

/** The uniform struct of a call as bytes: each parameter 4 bytes, in declaration order, padded to 16. */
export function packParams(kernel: Kernel, params: Readonly<Record<string, number>>): Uint8Array<ArrayBuffer> {
  const names = Object.keys(kernel.params);
  const view = new DataView(new ArrayBuffer(Math.ceil((names.length * 4) / 16) * 16));
  names.forEach((name, i) => {
    const value = params[name];
    if (!Number.isFinite(value)) throw new TypeError(`${kernel.name}: parameter ${name} is ${value}`);
    if (kernel.params[name] === "f32") view.setFloat32(i * 4, value, true);
    else if (kernel.params[name] === "i32") view.setInt32(i * 4, value, true);
    else view.setUint32(i * 4, value, true);
  });
  return new Uint8Array(view.buffer);
}

/** The most workgroups WebGPU guarantees along one dimension of a dispatch. */
const MAX_WORKGROUPS = 65535;

/**
 * Spreads `count` workgroups over x and y. The kernel recovers the linear index with `linearIndex(wid, num)` from
 * {@link LINEAR_INDEX} and returns early past its count.
 */
export function spread(count: number): [number, number] {
  const x = Math.min(Math.max(count, 1), MAX_WORKGROUPS);
  return [x, Math.ceil(count / x) || 1];
}

/** WGSL: the linear workgroup index of a {@link spread} dispatch. */
export const LINEAR_INDEX = /* wgsl */ `
fn linear_index(workgroup_id: vec3u, num_workgroups: vec3u) -> u32 {
  return workgroup_id.x + workgroup_id.y * num_workgroups.x;
}
`;
