package org.pytorch.executorch;

import java.nio.FloatBuffer;
import java.nio.LongBuffer;

public abstract class Tensor {
    public static FloatBuffer allocateFloatBuffer(int numElements) { throw new UnsupportedOperationException(); }
    public static LongBuffer allocateLongBuffer(int numElements) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(FloatBuffer data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(LongBuffer data, long[] shape) { throw new UnsupportedOperationException(); }
    public float[] getDataAsFloatArray() { throw new UnsupportedOperationException(); }
    public long[] getDataAsLongArray() { throw new UnsupportedOperationException(); }
    public void copyDataInto(FloatBuffer dst) { throw new UnsupportedOperationException(); }
}
