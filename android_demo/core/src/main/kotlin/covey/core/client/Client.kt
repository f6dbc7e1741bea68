package covey.core.client

import covey.core.CoveyException
import covey.core.MessageException
import covey.core.PayloadException
import covey.core.Reason
import covey.core.RefusedException
import covey.core.ServerException
import covey.core.StoppedException
import covey.core.UsageException
import covey.core.because
import covey.core.model.Layout
import covey.core.model.Prng
import covey.core.model.at
import covey.core.model.floatsOf
import covey.core.model.put
import covey.core.model.sha256
import covey.core.model.toLittleEndian
import covey.core.train.Fusion
import covey.core.train.LocalRound
import covey.core.train.LocalTrainer
import covey.core.train.PartTrainer
import covey.core.train.Progress
import covey.core.train.Score
import covey.core.train.evaluationBatches
import covey.core.wire.Assignment
import covey.core.wire.CheckIn
import covey.core.wire.CodecMemory
import covey.core.wire.Evaluation
import covey.core.wire.Update

/** What happens, for a screen or a log. */
sealed interface ClientEvent {
    data class Joined(val task: String, val model: String, val examples: Int, val heldout: Int) : ClientEvent
    data class Round(val round: Int, val rounds: Int, val version: Int) : ClientEvent
    data class Version(val version: Int, val bytes: Long) : ClientEvent
    data class Evaluated(val version: Int, val loss: Double) : ClientEvent
    data class Fused(val version: Int, val fusion: Fusion) : ClientEvent
    data class Personal(val version: Int, val loss: Double) : ClientEvent
    data class Stepped(val round: Int, val step: Int, val steps: Int, val loss: Double) : ClientEvent
    data class Trained(val round: Int, val lossBefore: Double, val lossAfter: Double, val bytes: Int) : ClientEvent
    data class Uploaded(val round: Int, val bytes: Int, val status: String) : ClientEvent
    data class Refused(val round: Int, val sentence: String, val code: String = "") : ClientEvent
    data class Waiting(val seconds: Double) : ClientEvent
    data class Notice(val sentence: String) : ClientEvent
    data class Finished(val rounds: Int, val lossBefore: Double?, val lossAfter: Double?) : ClientEvent
}

/**
 * One device in one task: does what [reduce] says is next. What is durable when: a version once its digest is right;
 * training after every step; an update, with its exact bytes, before the first byte of it is sent; the codec's next
 * memory only together with the server's acknowledgement, so that a change that never arrived is not taken for sent.
 */
class Client(
    private val device: Device,
    private val calls: Calls,
    private val folder: StateFolder,
    record: ClientRecord,
    private val clock: Clock,
    private val emit: (ClientEvent) -> Unit,
) {
    /** What is remembered; every change of it is saved before it is relied on. */
    var record: ClientRecord = record
        private set
    private val uploads = Uploads(calls.network, calls.url, folder)
    private var held = record.version()
    private var uploaded = 0
    private var refusals = 0
    private var cohort = record.cohort // as the server said last; what is held is of record.cohort

    /** Take part until the task is done (or one round is); throws [StoppedException] when asked to stop. */
    fun run(): ClientRecord {
        var state = resume(facts())
        while (true) {
            val event = perform(state) ?: return record
            state = reduce(state, event, facts(), device.wishes)
        }
    }

    private fun facts() = Facts(if (cohort == record.cohort) held.version else NOTHING, record.history.map { it.version }.toSet(), record.pending.isNotEmpty(), uploaded)

    private fun perform(state: RoundState): RoundEvent? = when (state) {
        is RoundState.CheckingIn -> checkIn()
        is RoundState.Fetching -> fetch(state.version)
        is RoundState.Evaluating -> evaluate(state.version)
        is RoundState.Training -> train(state.assignment)
        is RoundState.Uploading -> upload()
        is RoundState.Waiting -> pause(state.seconds)
        is RoundState.Finished -> finish()
    }

    private fun finish(): RoundEvent? {
        emit(ClientEvent.Finished(record.rounds, record.history.firstOrNull { it.version == 0 }?.loss, record.history.lastOrNull()?.loss))
        return null
    }

    private fun checkIn(): RoundEvent {
        val task = device.task
        val message = CheckIn(record.client, task.layout, held.version, device.dataset.train.count, device.runtime)
        val assignment = try {
            calls.checkIn(message)
        } catch (error: RefusedException) {
            return refused(error, 0)
        }
        cohort = assignment.cohort
        if (assignment.action == "train") emit(ClientEvent.Round(assignment.round, task.rounds, assignment.version))
        return RoundEvent.Assigned(assignment)
    }

    /** Come to a version: from the one held if the server's steps fit, else from the beginning. */
    private fun fetch(version: Int): RoundEvent {
        val before = held
        val traffic = calls.network.traffic
        val received = traffic.received[Calls.ADAPTER] ?: 0
        val from = if (before.version <= version) before else Held(NOTHING, before.adapter)
        try {
            held = try {
                advanceFrom(from, version)
            } catch (error: CoveyException) {
                if (from.version == NOTHING || !mayStartAgain(error)) throw error
                emit(ClientEvent.Notice("starting again from the whole adapter: ${error.sentence}"))
                advanceFrom(Held(NOTHING, from.adapter), version)
            }
        } catch (error: RefusedException) {
            return refused(error, 0)
        }
        val wentBack = version < before.version // the server lost what it had: its next versions are other ones
        val history = record.history.filter { !wentBack || it.version == 0 || it.version == version }
        save(record.copy(held = held.version, adapter = held.adapter.toLittleEndian(), cohort = cohort, history = history))
        emit(ClientEvent.Version(version, (traffic.received[Calls.ADAPTER] ?: 0) - received))
        return RoundEvent.Done
    }

    private fun mayStartAgain(error: CoveyException) =
        error is RefusedException && error.code != MOVED || error is MessageException || error is PayloadException || error is ServerException

    private fun advanceFrom(from: Held, version: Int): Held {
        val parts = device.division.downloads(cohort).map { (layout, of) -> partFrom(from, version, layout, of) }
        return Held(version, parts.reduce(FloatArray::plus))
    }

    /** A part of the version: what all devices have, or the copies of the cohort [of] this device. */
    private fun partFrom(from: Held, version: Int, layout: Layout, of: Int?): FloatArray {
        val known = if (of != null && of != record.cohort) NOTHING else from.version // else what is held is another's
        val mine = if (known == NOTHING) from.adapter else from.adapter.at(device.division.downloaded(record.cohort).positions(layout))
        return advance(Held(known, mine), calls.adapter(version, known, layout, of), layout) { device.startOf(layout) }.adapter
    }

    /** The version held, for all (personal tensors at their start) and, where there are any, with this device's own. */
    private fun evaluate(version: Int): RoundEvent {
        val scored = report(version, FloatArray(0), "global")
        save(record.copy(history = appended(record.history, scored)))
        emit(ClientEvent.Evaluated(version, scored.loss))
        if (device.division.personal != null || fuses()) {
            val own = report(version, own(), "personal")
            save(record.copy(ownHistory = appended(record.ownHistory, own)))
            emit(ClientEvent.Personal(version, own.loss))
        }
        return RoundEvent.Done
    }

    /** Whether this device has an adapter of its own besides the shared one. */
    private fun fuses() = device.task.sharing.fusion.isNotEmpty() && record.own.isNotEmpty()

    private fun fused(version: Int, own: FloatArray): FloatArray {
        val (adapter, found) = device.fused(held.adapter, own)
        emit(ClientEvent.Fused(version, found))
        return adapter
    }

    private fun report(version: Int, own: FloatArray, kind: String): Scored {
        val score = score(if (kind == "personal" && fuses()) fused(version, own) else device.whole(held.adapter, own, 0, cohort))
        val message = Evaluation(record.client, device.task.layout, version, score.lossSum, score.tokens, score.correct, kind)
        try {
            calls.evaluation(message)
        } catch (error: RefusedException) {
            emit(ClientEvent.Notice("the server does not take the evaluation of version $version: ${error.sentence}"))
        }
        return Scored(version, score.lossSum, score.tokens, score.correct)
    }

    private fun appended(history: List<Scored>, scored: Scored) = history.take(1) + history.drop(1).takeLast(HISTORY) + scored

    private fun score(adapter: FloatArray): Score =
        evaluationBatches(device.dataset.heldout, device.bundle.manifest.batchSize, device.evalBatches)
            .map { clock.sleep(0.0); device.trainer.evaluate(adapter, it) }
            .reduce(Score::plus)

    /** All steps of a round, from where a killed process left it; then the update, encoded and saved. */
    private fun train(assignment: Assignment): RoundEvent {
        val layout = device.division.adapter
        val trained = device.division.trained(assignment.round)
        val whole = device.whole(held.adapter, own(), assignment.round, assignment.cohort)
        val where = layout.positions(trained)
        val before = whole.at(where)
        val progress = trainSteps(assignment, PartTrainer(device.trainer, whole, where), before) ?: return RoundEvent.Dropped
        val (pending, memory) = encode(assignment, progress, before)
        save(
            record.copy(
                pending = listOf(pending), codecs = codecs(pending.codec, memory), own = ownAfter(assignment, progress.adapter, whole, where),
                trainSeconds = record.trainSeconds + progress.seconds,
            ),
        )
        folder.forget(TRAINING)
        emit(ClientEvent.Trained(assignment.round, progress.lossBefore, progress.lossAfter, pending.body.size))
        return RoundEvent.Done
    }

    /**
     * What this device keeps to itself after a round: its personal tensors, or where adapters are fused a copy of what it
     * [trained], the entries [where] of the [whole], in its first round and then as often as the task says.
     */
    private fun ownAfter(assignment: Assignment, trained: FloatArray, whole: FloatArray, where: IntArray): ByteArray {
        val sharing = device.task.sharing
        if (sharing.fusion.isNotEmpty()) {
            val due = record.own.isEmpty() || sharing.syncEvery > 0 && assignment.round % sharing.syncEvery == 0
            return if (due) whole.copyOf().also { it.put(where, trained) }.toLittleEndian() else record.own
        }
        val personal = device.division.personal ?: return ByteArray(0)
        return trained.at(device.division.trained(assignment.round).positions(personal)).toLittleEndian()
    }

    /** The memories to keep with this one: as many as a task has phases, the newest. */
    private fun codecs(name: String, memory: CodecMemory): Map<String, CodecMemory> {
        val others = record.codecs.filterKeys { it != name }.entries.toList().takeLast(maxOf(1, device.task.sharing.phases.size) - 1)
        return others.associate { it.toPair() } + (name to memory)
    }

    private fun trainSteps(assignment: Assignment, trainer: LocalTrainer, before: FloatArray): Progress? {
        val task = device.task
        val deadline = clock.seconds() + assignment.deadlineS
        val seed = LocalRound.seed(task.seed, assignment.round, record.client)
        val round = LocalRound(trainer, device.parts.train, device.bundle.manifest.batchSize, task.local, seed)
        var progress = resumed(assignment, before.size) ?: round.begin(before)
        while (!round.done(progress)) {
            clock.sleep(0.0) // a request to stop is heeded here: the step before is on disk
            progress = round.step(progress)
            folder.save(TRAINING, TrainingRecord.of(record.task, assignment.round, assignment.attempt, assignment.version, progress))
            emit(ClientEvent.Stepped(assignment.round, progress.step, task.local.steps, progress.last.last()))
            if (clock.seconds() > deadline && !round.done(progress)) {
                emit(ClientEvent.Notice("round ${assignment.round} is late at step ${progress.step}; it is kept in case it is opened again"))
                return null
            }
        }
        return progress
    }

    /** The round's saved progress if there is any of this very round. */
    private fun resumed(assignment: Assignment, size: Int): Progress? {
        val saved = folder.load(TRAINING, TrainingRecord) { emit(ClientEvent.Notice(it)) } ?: return null
        val same = saved.task == record.task && saved.round == assignment.round && saved.attempt == assignment.attempt &&
            saved.version == assignment.version && saved.adapter.size == 4 * size
        if (!same) return null
        emit(ClientEvent.Notice("going on with round ${assignment.round} after step ${saved.step}"))
        return saved.progress()
    }

    /** The round's change as an update to send, and the codec's memory until that is acknowledged. */
    private fun encode(assignment: Assignment, progress: Progress, before: FloatArray): Pair<Pending, CodecMemory> {
        val task = device.task
        val uploaded = device.division.uploaded(assignment.round)
        val sent = device.division.trained(assignment.round).positions(uploaded)
        val name = device.codecName(assignment.round)
        val codec = device.codec(assignment.round)
        val memory = record.codecs[name] ?: codec.init(Prng.derive(task.seed, "codec", record.client))
        val change = FloatArray(sent.size) { progress.adapter[sent[it]] - before[sent[it]] }
        val (parts, after) = codec.encode(change, memory, progress.adapter.at(sent))
        val body = Update(
            record.client, uploaded.digest, assignment.round, assignment.attempt, assignment.version, task.uploadCodec, parts,
            device.parts.train.count, progress.step, progress.lossBefore, progress.lossAfter, progress.seconds,
        ).toBytes()
        if (body.size > task.maxUploadBytes) {
            throw UsageException(
                "the update has ${body.size} bytes, the server takes at most ${task.maxUploadBytes}: its operator has to " +
                    "raise the limit or choose a smaller codec",
            ).because(Reason.UPDATE_SIZE, body.size, task.maxUploadBytes)
        }
        return Pending(assignment.round, assignment.attempt, assignment.version, body, name, after) to memory
    }

    /** Send the pending bytes until they are acknowledged; a refusal drops them and keeps the codec's old memory. */
    private fun upload(): RoundEvent {
        val pending = record.pending.first()
        val receipt = try {
            uploads.deliver(Parcel(pending.round, pending.version, record.client, pending.body))
        } catch (error: RefusedException) {
            save(record.copy(pending = emptyList()))
            return refused(error, pending.round)
        }
        if (receipt.digest != sha256(pending.body)) {
            throw ServerException("the server acknowledged other bytes than were sent for round ${pending.round}")
        }
        uploaded++
        refusals = 0
        save(record.copy(pending = emptyList(), codecs = codecs(pending.codec, pending.after), rounds = record.rounds + 1))
        emit(ClientEvent.Uploaded(pending.round, pending.body.size, receipt.status))
        return RoundEvent.Done
    }

    /** Note a refusal and pause; too many in a row are the end. */
    private fun refused(error: RefusedException, round: Int): RoundEvent {
        emit(ClientEvent.Refused(round, error.sentence, error.code))
        if (error.status == 401 || error.status == 403 || ++refusals >= MAX_REFUSALS) throw error
        clock.sleep(calls.network.backoff.delay(refusals, clock.draw()))
        return RoundEvent.Dropped
    }

    /** Sleep as long as the server asked, with a little jitter so that devices do not march in step. */
    private fun pause(wanted: Double): RoundEvent {
        val seconds = wanted.coerceIn(MIN_WAIT_S, MAX_WAIT_S) * (1 + 0.1 * clock.draw())
        emit(ClientEvent.Waiting(seconds))
        clock.sleep(seconds)
        return RoundEvent.Done
    }

    private fun own(): FloatArray = floatsOf(record.own)

    private fun save(changed: ClientRecord) {
        val traffic = calls.network.traffic
        record = changed.copy(sent = traffic.sent.toMap(), received = traffic.received.toMap())
        folder.save(CLIENT, record)
    }

    companion object {
        /** The files of the state folder. */
        const val CLIENT = "client"
        const val TRAINING = "training"
        private const val HISTORY = 2000
        private const val MAX_REFUSALS = 5
        private const val MOVED = "conflict" // the code where this device has come to another cohort since it checked in
        private const val MIN_WAIT_S = 0.02
        private const val MAX_WAIT_S = 600.0
    }
}
