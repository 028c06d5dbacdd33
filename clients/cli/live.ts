// One line at the bottom of a terminal that is painted again and again, with lines printed above it.

import type { WriteStream } from "node:tty";

export interface Live {
  /** Paints the line, at most PAINTS_PER_SECOND times a second; what comes in between is painted later. */
  paint(line: string): void;
  /** Prints a line above. */
  print(line: string): void;
  /** Leaves the last painted line standing. */
  end(): void;
}

const PAINTS_PER_SECOND = 10;
const ERASE = "\r\x1b[2K";

/** Writes to `terminal`. The line must fit its width, or it would wrap and leave traces. */
export function liveLine(terminal: Pick<WriteStream, "write">): Live {
  let line = "";
  let timer: ReturnType<typeof setTimeout> | undefined;
  const repaint = () => {
    timer = undefined;
    terminal.write(ERASE + line);
  };
  return {
    paint(next) {
      line = next;
      timer ??= setTimeout(repaint, 1000 / PAINTS_PER_SECOND);
    },
    print(text) {
      terminal.write(`${ERASE}${text}\n${line}`);
    },
    end() {
      clearTimeout(timer);
      terminal.write(line === "" ? ERASE : `${ERASE}${line}\n`);
    },
  };
}
