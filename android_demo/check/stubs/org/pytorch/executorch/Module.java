package org.pytorch.executorch;

public class Module implements java.io.Closeable {
    public static final int LOAD_MODE_FILE = 0;
    public static final int LOAD_MODE_MMAP = 1;

    public static Module load(String modelPath, int loadMode) { throw new UnsupportedOperationException(); }
    public EValue[] execute(String methodName, EValue... inputs) { throw new UnsupportedOperationException(); }
    public void destroy() { throw new UnsupportedOperationException(); }
    @Override public void close() { throw new UnsupportedOperationException(); }
}
