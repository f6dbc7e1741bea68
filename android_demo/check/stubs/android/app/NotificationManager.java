package android.app;

public class NotificationManager {
    public static final int IMPORTANCE_LOW = 2; // API 24
    public void createNotificationChannel(NotificationChannel channel) { throw new UnsupportedOperationException(); } // API 26
    public void notify(int id, Notification notification) { throw new UnsupportedOperationException(); }
    public void cancel(int id) { throw new UnsupportedOperationException(); }
}
