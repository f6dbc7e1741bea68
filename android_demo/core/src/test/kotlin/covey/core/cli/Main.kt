package covey.core.cli

import covey.core.CoveyException
import covey.core.StoppedException
import covey.core.UsageException
import covey.core.client.Backup
import covey.core.client.BundleTrust
import covey.core.client.Bundles
import covey.core.client.Calls
import covey.core.client.Client
import covey.core.client.ClientEvent
import covey.core.client.ClientRecord
import covey.core.client.Clock
import covey.core.client.Device
import covey.core.client.Retrying
import covey.core.client.SignedHttp
import covey.core.client.Signing
import covey.core.client.SoftwareKey
import covey.core.client.StateFolder
import covey.core.client.Traffic
import covey.core.client.Vault
import covey.core.client.Wishes
import covey.core.client.serverUrl
import covey.core.train.datasetOf
import covey.core.train.decodeText
import covey.core.train.documentsOf
import covey.core.tokens.coderOf
import java.io.File
import java.nio.channels.FileChannel
import java.nio.file.StandardOpenOption.READ
import java.security.SecureRandom
import kotlin.system.exitProcess

/**
 * The client of :core as a command, for the end-to-end test: what the app does, with ExecuTorch in a child process.
 *
 *     java covey.core.cli.MainKt URL --data FOLDER --name NAME --state FOLDER --cache FOLDER --python PYTHON --trainer SCRIPT
 */
fun main(arguments: Array<String>) {
    val options = arguments.drop(1).chunked(2).associate { it[0].removePrefix("--") to it[1] }
    try {
        join(serverUrl(arguments[0]), options)
    } catch (error: CoveyException) {
        System.err.println("covey-jvm: ${error.sentence}")
        exitProcess(if (error is StoppedException) 130 else 1)
    }
}

private fun join(url: String, options: Map<String, String>) {
    val option = { name: String -> options[name] ?: throw UsageException("--$name is missing") }
    StateFolder.open(File(option("state")), ::syncFolder).use { folder ->
        val remembered = folder.load(Client.CLIENT, ClientRecord) { say(ClientEvent.Notice(it)) } ?: ClientRecord(option("name"))
        val traffic = Traffic(HashMap(remembered.sent), HashMap(remembered.received))
        val http = SignedHttp(JdkHttp(url), Signing(key(File(option("state")))), url)
        val network = Retrying(http, url, SystemClock, traffic) { say(ClientEvent.Notice(it)) }
        val calls = Calls(network, url)
        network.backoff = network.backoff.copy(patienceS = 10.0)
        val client = calls.enroll(remembered.client, options["code"].orEmpty())
        val task = calls.task()
        network.backoff = network.backoff.copy(patienceS = null)
        val name = Device.taskName(task)
        val record = if (remembered.task == name && remembered.client == client) remembered else ClientRecord(client, name)
        val bundles = Bundles(calls, http, File(option("cache")), RUNTIME)
        val (manifest, data) = bundles.manifest(task)
        BundleTrust(folder) { say(ClientEvent.Notice(it)) }.check(data, calls.signatures())
        val documents = documentsOf(texts(File(option("data"))), manifest)
        val bundle = bundles.fetch(manifest, data) { _, _ -> }
        val dataset = datasetOf(documents, coderOf(manifest.tokenizer!!, bundle.folder), manifest, 0.2)
        PipeTrainer(option("python"), File(option("trainer")), bundle.folder).use { trainer ->
            say(ClientEvent.Joined(task.name, manifest.model, dataset.train.count, dataset.heldout.count))
            val device = Device(
                task, bundle, dataset, trainer, RUNTIME, Wishes(once = "once" in options), options["eval-batches"]?.toInt() ?: 16,
            )
            val backup = options["passphrase"]?.let { Backup(calls, Vault(it, name, options["vault-name"] ?: client)) }
            val own = backup?.restore(device, record) ?: record
            if (own !== record) say(ClientEvent.Notice("the own tensors are those of the vault"))
            val after = Client(device, calls, folder, own, SystemClock, ::say).run()
            if (backup != null) { backup.store(after); println("vault $name") }
        }
    }
}

/** The texts of a folder in the order in which `covey join` reads them: files by name, then the folders below. */
private fun texts(path: File): List<Pair<String, String>> = filesOf(path).mapNotNull { file -> decodeText(file.readBytes())?.let { file.name to it } }
    .filter { (_, text) -> text.isNotBlank() }
    .ifEmpty { throw UsageException("$path holds no text") }

private fun filesOf(path: File): List<File> {
    if (!path.isDirectory) return listOf(path)
    val (folders, files) = path.listFiles()!!.filterNot { it.name.startsWith(".") }.sortedBy { it.name }.partition { it.isDirectory }
    return files + folders.flatMap(::filesOf)
}

/** One line an event, flushed at once: the test waits for some of them. */
private fun say(event: ClientEvent) {
    println("${event.javaClass.simpleName.lowercase()} ${event.toString().substringAfter('(').removeSuffix(")")}")
    System.out.flush()
}

/** The key of this device, made on first use. */
internal fun key(folder: File): SoftwareKey {
    val (private, public) = File(folder, "key") to File(folder, "key.pub")
    if (!public.isFile) {
        val made = SoftwareKey.generate().encoded()
        private.writeBytes(made.first)
        public.writeBytes(made.second)
    }
    return SoftwareKey.of(private.readBytes(), public.readBytes())
}

internal fun syncFolder(folder: File) = FileChannel.open(folder.toPath(), READ).use { it.force(true) }

internal object SystemClock : Clock {
    override fun seconds(): Double = System.nanoTime() * 1e-9
    override fun sleep(seconds: Double) { if (seconds > 0) Thread.sleep((1000 * seconds).toLong()) }
    override fun draw(): Double = SecureRandom().nextDouble()
}

private const val RUNTIME = "executorch"
