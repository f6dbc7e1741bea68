package covey.app

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import covey.core.client.Overview
import covey.core.client.Phase
import java.util.concurrent.atomic.AtomicBoolean

/**
 * Trains while the phone charges on an unmetered network and its battery is not low: the same conditions, and the same
 * engine, that WorkManager would use. The system may end a slice at any time; the step before is on disk.
 */
class TrainingJobService : JobService() {
    private val stopped = AtomicBoolean()

    override fun onStartJob(parameters: JobParameters): Boolean {
        val store = Store(this)
        if (store.paused || store.server.isEmpty()) return false
        stopped.set(false)
        val notifications = Notifications(this)
        Thread({
            val session = Session(this, store) { overview ->
                notifications.show(overview)
                Screens.show(overview)
            }
            val end = session.slice { stopped.get() }
            notifications.cancel()
            if (!stopped.get()) {
                jobFinished(parameters, false)
                if (end is SliceEnd.Later && !store.paused) schedule(this, end.seconds)
            }
        }, "covey-slice").start()
        return true
    }

    /** The conditions no longer hold, or the time is over: stop after this step, and begin again when they do. */
    override fun onStopJob(parameters: JobParameters): Boolean {
        stopped.set(true)
        return !Store(this).paused
    }

    companion object {
        private const val JOB = 1

        /** The next slice, in so many seconds at the soonest. */
        fun schedule(context: Context, seconds: Double = 0.0) {
            val job = JobInfo.Builder(JOB, ComponentName(context, TrainingJobService::class.java))
                .setRequiresCharging(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .setRequiresBatteryNotLow(true)
                .setMinimumLatency((1000 * seconds).toLong())
                .setBackoffCriteria(30_000, JobInfo.BACKOFF_POLICY_EXPONENTIAL)
                .setPersisted(true)
                .build()
            scheduler(context).schedule(job)
        }

        /** No more slices; one that runs stops after its step. */
        fun cancel(context: Context) = scheduler(context).cancel(JOB)

        private fun scheduler(context: Context) = context.getSystemService(Context.JOB_SCHEDULER_SERVICE) as JobScheduler
    }
}

/** Tells the activity, if one is there, what a slice does; on the main thread. */
object Screens {
    private val main = android.os.Handler(android.os.Looper.getMainLooper())

    /** The activity that is visible. */
    @Volatile
    var visible: ((Overview) -> Unit)? = null

    fun show(overview: Overview) {
        main.post { visible?.invoke(overview) }
    }
}

/** One quiet notification while training. */
class Notifications(private val context: Context) {
    private val manager = context.getSystemService(Context.NOTIFICATION_SERVICE) as android.app.NotificationManager
    private var last = 0L

    init {
        val name = context.getString(R.string.channel)
        manager.createNotificationChannel(android.app.NotificationChannel(CHANNEL, name, android.app.NotificationManager.IMPORTANCE_LOW))
    }

    /** At most once a second: the system drops what comes faster. */
    fun show(overview: Overview) {
        val now = android.os.SystemClock.elapsedRealtime()
        if (overview.phase != Phase.TRAINING || now - last < 1000) return
        last = now
        val open = android.app.PendingIntent.getActivity(
            context, 0, android.content.Intent(context, MainActivity::class.java), android.app.PendingIntent.FLAG_IMMUTABLE,
        )
        val notification = android.app.Notification.Builder(context, CHANNEL)
            .setSmallIcon(R.drawable.ic_bird)
            .setContentTitle(context.getString(R.string.notification_training, overview.round, overview.step, overview.steps))
            .setContentText(context.getString(R.string.notification_text))
            .setProgress(overview.steps, overview.step, false)
            .setContentIntent(open)
            .setOngoing(true)
            .setOnlyAlertOnce(true)
            .build()
        manager.notify(ID, notification)
    }

    fun cancel() = manager.cancel(ID)

    companion object {
        private const val CHANNEL = "training"
        private const val ID = 1
    }
}
