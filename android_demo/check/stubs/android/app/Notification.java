package android.app;

import android.content.Context;

public class Notification {
    public static class Builder {
        public Builder(Context context, String channelId) { throw new UnsupportedOperationException(); } // API 26
        public Builder setSmallIcon(int icon) { throw new UnsupportedOperationException(); }
        public Builder setContentTitle(CharSequence title) { throw new UnsupportedOperationException(); }
        public Builder setContentText(CharSequence text) { throw new UnsupportedOperationException(); }
        public Builder setProgress(int max, int progress, boolean indeterminate) { throw new UnsupportedOperationException(); }
        public Builder setContentIntent(PendingIntent intent) { throw new UnsupportedOperationException(); }
        public Builder setOngoing(boolean ongoing) { throw new UnsupportedOperationException(); }
        public Builder setOnlyAlertOnce(boolean once) { throw new UnsupportedOperationException(); }
        public Notification build() { throw new UnsupportedOperationException(); }
    }
}
