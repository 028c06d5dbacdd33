// A wait that ends: what does not come in time fails, with what can be said of it.

/** @param otherwise says, when the time is up, how things stand */
export async function within<T>(
  milliseconds: number,
  what: string,
  work: Promise<T>,
  otherwise: () => string,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`${what}: nothing after ${milliseconds} ms\n${otherwise()}`)),
      milliseconds,
    );
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
