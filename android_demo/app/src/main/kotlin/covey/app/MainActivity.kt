package covey.app

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Build
import android.os.Bundle
import android.text.format.Formatter
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.TextView
import android.widget.Toast
import covey.core.CoveyException
import covey.core.client.Cost
import covey.core.client.Invitation
import covey.core.client.Overview
import covey.core.client.Phase
import covey.core.client.fitsMemory

/** The one screen: join, watch, pause, leave. It shows an [Overview] and does nothing that takes time itself. */
class MainActivity : Activity() {
    private lateinit var store: Store

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        store = Store(this)
        setContentView(R.layout.main)
        button(R.id.pick).setOnClickListener { pickText() }
        button(R.id.join).setOnClickListener { join() }
        button(R.id.main_action).setOnClickListener { act(store.overview()) }
        button(R.id.leave).setOnClickListener { askToLeave() }
        takeLink(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        takeLink(intent)
    }

    override fun onResume() {
        super.onResume()
        Screens.visible = ::show
        show(store.overview())
    }

    override fun onPause() {
        Screens.visible = null
        super.onPause()
    }

    /** A link that was tapped or read from a QR code fills the field; a person still presses the button. */
    private fun takeLink(intent: Intent?) {
        intent?.data?.let { if (it.scheme == "covey") field(R.id.invitation).setText(it.toString()) }
    }

    private fun pickText() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*") // labelled records are no text to most file managers
        startActivityForResult(intent, PICK)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val uri = data?.data
        if (request != PICK || result != RESULT_OK || uri == null) return
        background {
            val text = try {
                store.copyText(uri)
            } catch (_: java.io.IOException) {
                null
            } catch (_: SecurityException) {
                null
            }
            runOnUiThread {
                if (text == null) say(getString(R.string.text_not_text))
                showText(uri.lastPathSegment?.substringAfterLast('/'))
            }
        }
    }

    private fun join() {
        val notes = field(R.id.notes).text.toString()
        if (notes.isNotBlank()) store.keepText(notes)
        val written = field(R.id.invitation).text.toString()
        if (written.isBlank() || !store.hasText) return say(getString(R.string.join_needs_both))
        val invitation = try {
            Invitation.parse(written)
        } catch (error: CoveyException) {
            return say(Sentences(this).of(error))
        }
        store.server = invitation.server
        store.code = invitation.code
        store.typeRecovery(field(R.id.recovery).text.toString())
        store.paused = false
        button(R.id.join).isEnabled = false
        prepare()
    }

    private fun prepare() = background {
        Session(applicationContext, store) { Screens.show(it) }.prepare()
        runOnUiThread { button(R.id.join).isEnabled = true }
    }

    /** What the large button does depends on what is shown. */
    private fun act(overview: Overview) {
        when (overview.phase) {
            Phase.ASKING -> agree()
            Phase.PAUSED -> setPaused(false)
            Phase.PROBLEM -> if (store.agreed.isEmpty()) prepare() else go(overview)
            else -> setPaused(true)
        }
    }

    private fun agree() = background {
        val session = Session(applicationContext, store) { Screens.show(it) }
        session.agree()
        runOnUiThread {
            askForNotifications()
            go(store.overview())
        }
    }

    private fun go(overview: Overview) {
        keep(overview.copy(phase = Phase.SCHEDULED, sentence = ""))
        TrainingJobService.schedule(this)
    }

    private fun setPaused(paused: Boolean) {
        store.paused = paused
        if (paused) {
            TrainingJobService.cancel(this)
            keep(store.overview().copy(phase = Phase.PAUSED))
        } else {
            go(store.overview())
        }
    }

    private fun keep(overview: Overview) {
        store.keep(overview)
        show(overview)
    }

    private fun askForNotifications() {
        val permission = "android.permission.POST_NOTIFICATIONS"
        if (Build.VERSION.SDK_INT >= 33 && checkSelfPermission(permission) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(arrayOf(permission), NOTIFY)
        }
    }

    private fun askToLeave() {
        AlertDialog.Builder(this)
            .setTitle(R.string.leave_question)
            .setMessage(R.string.leave_details)
            .setNegativeButton(R.string.cancel, null)
            .setPositiveButton(R.string.leave_yes) { _, _ -> leave() }
            .show()
    }

    private fun leave() {
        store.paused = true // a slice that runs writes nothing any more once it sees this
        TrainingJobService.cancel(this)
        background {
            Session(applicationContext, store) {}.leave()
            runOnUiThread {
                field(R.id.invitation).setText("")
                field(R.id.notes).setText("")
                show(Overview())
            }
        }
    }

    private fun show(overview: Overview) {
        val joined = overview.phase != Phase.NOT_JOINED
        view(R.id.join_card).visibility = if (joined) View.GONE else View.VISIBLE
        view(R.id.task_card).visibility = if (joined) View.VISIBLE else View.GONE
        if (!joined) return showText(null)
        text(R.id.task).text = listOf(overview.task, overview.model).filter { it.isNotEmpty() }.joinToString(" · ")
        text(R.id.phase).setText(PHASES.getValue(overview.phase))
        showProgress(overview)
        showSentence(overview)
        val measured = if (overview.losses.isEmpty()) View.GONE else View.VISIBLE // nothing to show, nothing shown
        view(R.id.curve).visibility = measured
        view(R.id.numbers).visibility = measured
        (view(R.id.curve) as LossCurveView).losses = overview.losses
        text(R.id.loss).text = overview.losses.lastOrNull()?.let { "%.3f".format(it) } ?: getString(R.string.none_yet)
        text(R.id.loss_change).text = overview.change?.let { getString(R.string.loss_change, 100 * it) }.orEmpty()
        text(R.id.updates).text = overview.updates.toString()
        text(R.id.bytes_today).text = bytes(store.bytesToday)
        val recovery = store.recoveryOrNull
        text(R.id.recovery_line).visibility = if (recovery == null) View.GONE else View.VISIBLE
        text(R.id.recovery_line).text = recovery?.let { getString(R.string.recovery_line, it) }.orEmpty()
        showAction(overview.phase)
    }

    private fun showProgress(overview: Overview) {
        val bar = view(R.id.progress) as ProgressBar
        val training = overview.phase == Phase.TRAINING && overview.steps > 0
        bar.visibility = if (training || overview.phase == Phase.DOWNLOADING) View.VISIBLE else View.GONE
        bar.progress = if (training) 1000 * overview.step / overview.steps else (1000 * overview.share).toInt()
        val round = if (overview.rounds > 0) getString(R.string.round, overview.round, overview.rounds) else ""
        val step = if (training) getString(R.string.step, overview.step, overview.steps) else ""
        val line = listOf(round, step).filter { it.isNotEmpty() }.joinToString(", ")
        text(R.id.progress_text).text = line
        text(R.id.progress_text).visibility = if (line.isEmpty()) View.GONE else View.VISIBLE
    }

    private fun showSentence(overview: Overview) {
        val sentence = if (overview.phase == Phase.ASKING) question(overview) else overview.sentence
        text(R.id.sentence).text = sentence
        text(R.id.sentence).visibility = if (sentence.isEmpty()) View.GONE else View.VISIBLE
        val warning = overview.phase == Phase.PROBLEM
        text(R.id.sentence).setTextColor(getColor(if (warning) R.color.warning else R.color.ink))
    }

    private fun question(overview: Overview): String {
        val free = Session.freeMemory(this)
        val cost = Cost(overview.model, overview.downloadBytes, overview.memoryBytes)
        val (size, memory) = bytes(cost.downloadBytes) to bytes(cost.memoryBytes)
        return if (fitsMemory(cost, free)) getString(R.string.asking, cost.model, size, memory, bytes(free))
        else getString(R.string.asking_too_large, cost.model, memory, bytes(free), size)
    }

    private fun showAction(phase: Phase) {
        val label = when (phase) {
            Phase.ASKING -> R.string.asking_yes
            Phase.PAUSED -> R.string.resume
            Phase.PROBLEM -> R.string.retry
            Phase.FINISHED -> 0
            else -> R.string.pause
        }
        button(R.id.main_action).visibility = if (label == 0) View.GONE else View.VISIBLE
        if (label != 0) button(R.id.main_action).setText(label)
    }

    private fun showText(name: String?) {
        val length = store.text()?.length ?: 0
        text(R.id.text_state).text =
            if (length == 0) getString(R.string.text_none) else getString(R.string.text_some, name ?: getString(R.string.text_notes), length)
    }

    private fun background(work: () -> Unit) = Thread(work, "covey-ask").start()
    private fun say(sentence: String) = Toast.makeText(this, sentence, Toast.LENGTH_LONG).show()
    private fun bytes(count: Long): String = Formatter.formatShortFileSize(this, count)
    private fun view(id: Int): View = findViewById(id) as View
    private fun text(id: Int) = view(id) as TextView
    private fun field(id: Int) = view(id) as EditText
    private fun button(id: Int) = view(id) as Button

    companion object {
        private const val PICK = 1
        private const val NOTIFY = 2
        private val PHASES = mapOf(
            Phase.NOT_JOINED to R.string.phase_not_joined, Phase.ASKING to R.string.phase_asking,
            Phase.SCHEDULED to R.string.phase_scheduled, Phase.DOWNLOADING to R.string.phase_downloading,
            Phase.EVALUATING to R.string.phase_evaluating, Phase.TRAINING to R.string.phase_training,
            Phase.UPLOADING to R.string.phase_uploading, Phase.WAITING to R.string.phase_waiting,
            Phase.PAUSED to R.string.phase_paused, Phase.FINISHED to R.string.phase_finished, Phase.PROBLEM to R.string.phase_problem,
        )
    }
}
