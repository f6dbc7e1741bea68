package covey.app

import android.app.ActivityManager
import android.content.Context
import covey.core.BundleException
import covey.core.CoveyException
import covey.core.StoppedException
import covey.core.TakenException
import covey.core.UnreachableException
import covey.core.UsageException
import covey.core.client.Backoff
import covey.core.client.Backup
import covey.core.client.Bundle
import covey.core.client.BundleTrust
import covey.core.client.Bundles
import covey.core.client.Calls
import covey.core.client.Client
import covey.core.client.ClientEvent
import covey.core.client.ClientRecord
import covey.core.client.Clock
import covey.core.client.Device
import covey.core.client.Overview
import covey.core.client.Phase
import covey.core.client.PlatformHttp
import covey.core.client.Retrying
import covey.core.client.SignedHttp
import covey.core.client.Signing
import covey.core.client.SliceClock
import covey.core.client.StateFolder
import covey.core.client.Traffic
import covey.core.client.Vault
import covey.core.client.Wishes
import covey.core.tokens.coderOf
import covey.core.train.Dataset
import covey.core.train.LocalTrainer
import covey.core.train.datasetOf
import covey.core.train.documentsOf
import covey.core.wire.Task
import java.security.SecureRandom

/** How a slice of work ended. */
sealed interface SliceEnd {
    /** There is more to do, in so many seconds at the soonest. */
    data class Later(val seconds: Double) : SliceEnd

    /** Nothing more until a person acts: done, or wrong, or to be agreed to. */
    data object Rest : SliceEnd
}

/**
 * Takes part in a task for as long as one job may run; every step is on disk, so it may be ended anywhere. Everything
 * that can be tested without a phone is in :core; this only puts it together.
 */
class Session(private val context: Context, private val store: Store, private val show: (Overview) -> Unit) {
    private var overview = store.overview()
    private val sentences = Sentences(context)

    /** Asks the server what there is to join, and the person whether the model may be downloaded. */
    fun prepare(): SliceEnd = guarded {
        val network = open(ClientRecord(newName()), ForegroundClock)
        enroll(network, newName())
        val task = network.calls.task()
        val (manifest, _) = network.bundles.manifest(task)
        documentsOf(texts(), manifest) // the text is the likelier to be wrong: it is looked at before anything large comes
        update(overview.asking(network.bundles.cost(manifest, task)).copy(task = task.name, losses = emptyList(), updates = 0))
        store.agreed = ""
        SliceEnd.Rest
    }

    /** The person agreed to download what the server serves now. */
    fun agree(): SliceEnd = guarded {
        store.agreed = open(ClientRecord(newName()), ForegroundClock).calls.task().bundle
        SliceEnd.Rest
    }

    /** Delete the model, what was learnt, the text and the key, once a slice that still runs has ended. */
    fun leave() {
        try {
            stateWhenFree { false }.close()
        } catch (_: TakenException) { // it hangs; what it still writes is of no use to anybody
        }
        KeystoreKey.delete()
        store.deleteAll()
    }

    /** The state, as soon as a slice that was stopped a moment ago lets go of it. */
    private fun stateWhenFree(stopped: () -> Boolean): StateFolder {
        repeat(PATIENT_TRIES) {
            try {
                return store.state()
            } catch (_: TakenException) {
                if (stopped()) throw StoppedException(0.0)
                Thread.sleep(200)
            }
        }
        return store.state()
    }

    /** One slice of training, until it is stopped or its time is over. */
    fun slice(stopped: () -> Boolean): SliceEnd = guarded {
        stateWhenFree(stopped).use { folder ->
            val remembered = folder.load(Client.CLIENT, ClientRecord) { update(overview.copy(sentence = context.getString(R.string.state_damaged))) } ?: ClientRecord(newName())
            val network = open(remembered, SliceClock(SLICE_S, LONGEST_WAIT_S, stopped))
            try {
                work(folder, remembered, network)
            } finally {
                store.addBytes(network.bytes() - remembered.sent.values.sum() - remembered.received.values.sum())
            }
        }
    }

    private fun work(folder: StateFolder, remembered: ClientRecord, network: Network): SliceEnd {
        val client = enroll(network, remembered.client)
        val task = network.calls.task()
        val (manifest, data) = network.bundles.manifest(task)
        if (store.agreed != task.bundle) { // another model than the person agreed to
            update(overview.asking(network.bundles.cost(manifest, task)).copy(task = task.name))
            return SliceEnd.Rest
        }
        BundleTrust(folder) { update(overview.copy(sentence = context.getString(R.string.signer_note, it))) }.check(data, network.calls.signatures())
        val bundle = network.bundles.fetch(manifest, data) { done, total ->
            network.clock.sleep(0.0)
            if (done % REPORT_BYTES < 65_536 || done == total) update(overview.downloading(done, total))
        }
        val name = Device.taskName(task)
        val record = if (remembered.task == name && remembered.client == client) remembered else ClientRecord(client, name)
        trainer(bundle).use { trainer ->
            val device = Device(task, bundle, dataset(bundle), trainer, "executorch", Wishes(), EVAL_BATCHES)
            emit(joined(task, device.dataset, bundle))
            val backup = if (device.ownSize > 0) Backup(network.calls, Vault(store.recovery(), name, VAULT)) else null
            val restored = backup?.let { restoreOrKeep(it, device, record) } ?: record
            val ended = Client(device, network.calls, folder, restored, network.clock, ::emit).run()
            backup?.let { keep(it, ended) }
        }
        return SliceEnd.Rest
    }

    /** Own tensors of another phone, where there are none yet; else those of this one go to the server, once a round at most. */
    private fun restoreOrKeep(backup: Backup, device: Device, record: ClientRecord): ClientRecord {
        if (record.own.isNotEmpty()) keep(backup, record)
        return if (store.recoveryTyped) backup.restore(device, record, expected = true) else record
    }

    private fun keep(backup: Backup, record: ClientRecord) {
        if (record.rounds == store.backedUp) return
        backup.store(record)
        store.backedUp = record.rounds
    }

    /** The name of this phone's key at the server. The code is forgotten once it is used. */
    private fun enroll(network: Network, wish: String): String =
        network.calls.enroll(wish, store.code).also { if (store.code.isNotEmpty()) store.code = "" }

    private fun joined(task: Task, dataset: Dataset, bundle: Bundle) =
        ClientEvent.Joined(task.name, bundle.manifest.model, dataset.train.count, dataset.heldout.count)

    private fun trainer(bundle: Bundle): LocalTrainer {
        val manifest = bundle.manifest
        try {
            return ExecuTorchTrainer(
                bundle.path("executorch", "model"), manifest.layout.size, manifest.frozen?.size ?: 0, manifest.batchSize, manifest.seqLen,
                classes = manifest.labels.isNotEmpty(),
            )
        } catch (error: RuntimeException) { // the runtime's own errors
            throw BundleException(context.getString(R.string.runtime_failed, error.message.orEmpty().take(200)))
        } catch (error: UnsatisfiedLinkError) { // this phone's processor has no build of the runtime
            throw BundleException(context.getString(R.string.runtime_failed, error.message.orEmpty().take(200)))
        }
    }

    private fun dataset(bundle: Bundle): Dataset {
        val manifest = bundle.manifest
        val spec = manifest.tokenizer ?: throw BundleException(context.getString(R.string.runtime_failed, manifest.task))
        return datasetOf(documentsOf(texts(), manifest), coderOf(spec, bundle.folder), manifest, HOLDOUT)
    }

    /** The text that the person chose, under a name that its errors have. */
    private fun texts(): List<Pair<String, String>> =
        listOf(context.getString(R.string.text_heading) to (store.text() ?: throw UsageException(context.getString(R.string.text_gone))))

    private inline fun guarded(work: () -> SliceEnd): SliceEnd = try {
        work()
    } catch (stop: StoppedException) {
        update(overview.copy(phase = if (store.paused) Phase.PAUSED else if (stop.laterS > 0) Phase.WAITING else Phase.SCHEDULED))
        SliceEnd.Later(stop.laterS)
    } catch (error: UnreachableException) { // no network is no reason to give up
        update(overview.failed(sentences.of(error)))
        SliceEnd.Later(UNREACHABLE_S)
    } catch (error: CoveyException) {
        update(overview.failed(sentences.of(error)))
        SliceEnd.Rest
    } catch (_: OutOfMemoryError) {
        update(overview.failed(context.getString(R.string.memory_gone)))
        SliceEnd.Rest
    }

    private fun emit(event: ClientEvent) = when (event) {
        is ClientEvent.Notice -> Unit // for logs
        is ClientEvent.Refused -> update(overview.copy(sentence = sentences.refused(event.code, event.sentence)))
        else -> update(overview.after(event))
    }

    private fun update(next: Overview) {
        if (store.server.isEmpty()) return // the person has left in the meantime
        overview = next
        store.keep(next)
        show(next)
    }

    private class Network(val calls: Calls, val bundles: Bundles, val clock: Clock) {
        fun bytes(): Long = calls.network.traffic.run { sent.values.sum() + received.values.sum() }
    }

    private fun open(record: ClientRecord, clock: Clock): Network {
        val traffic = Traffic(HashMap(record.sent), HashMap(record.received))
        val http = SignedHttp(PlatformHttp(store.server), Signing(KeystoreKey()), store.server)
        val network = Retrying(http, store.server, clock, traffic) { update(overview.copy(sentence = context.getString(R.string.trying_again, store.server))) }
        network.backoff = Backoff(patienceS = PATIENCE_S)
        val calls = Calls(network, store.server)
        return Network(calls, Bundles(calls, http, store.bundles, "executorch"), clock)
    }

    companion object {
        private const val SLICE_S = 480.0 // a job may run about ten minutes
        private const val LONGEST_WAIT_S = 15.0 // longer waits are the job scheduler's
        private const val PATIENCE_S = 20.0
        private const val UNREACHABLE_S = 300.0
        private const val PATIENT_TRIES = 150 // of 0.2 s: a step may take long
        private const val HOLDOUT = 0.2
        private const val EVAL_BATCHES = 16
        private const val REPORT_BYTES = 1L shl 20
        private const val VAULT = "phone" // the recovery code alone says whose a vault is

        private fun newName(): String = "phone-" + ByteArray(4).also(SecureRandom()::nextBytes).joinToString("") { "%02x".format(it) }

        /** Memory that the system could give now. */
        fun freeMemory(context: Context): Long = ActivityManager.MemoryInfo().also {
            (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(it)
        }.availMem
    }

    private object ForegroundClock : Clock {
        override fun seconds(): Double = System.nanoTime() * 1e-9
        override fun sleep(seconds: Double) = Thread.sleep((1000 * seconds).toLong())
    }
}
