package android.app.job;

import android.content.ComponentName;

public class JobInfo {
    public static final int NETWORK_TYPE_UNMETERED = 2;
    public static final int BACKOFF_POLICY_EXPONENTIAL = 1;

    public static final class Builder {
        public Builder(int jobId, ComponentName jobService) { throw new UnsupportedOperationException(); }
        public Builder setRequiresCharging(boolean requiresCharging) { throw new UnsupportedOperationException(); }
        public Builder setRequiredNetworkType(int networkType) { throw new UnsupportedOperationException(); }
        public Builder setRequiresBatteryNotLow(boolean batteryNotLow) { throw new UnsupportedOperationException(); } // API 26
        public Builder setMinimumLatency(long minLatencyMillis) { throw new UnsupportedOperationException(); }
        public Builder setBackoffCriteria(long initialBackoffMillis, int backoffPolicy) { throw new UnsupportedOperationException(); }
        public Builder setPersisted(boolean isPersisted) { throw new UnsupportedOperationException(); }
        public JobInfo build() { throw new UnsupportedOperationException(); }
    }
}
