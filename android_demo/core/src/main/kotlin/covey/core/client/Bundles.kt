package covey.core.client

import covey.core.BundleException
import covey.core.Reason
import covey.core.RefusedException
import covey.core.UsageException
import covey.core.because
import covey.core.model.BundleFile
import covey.core.model.Manifest
import covey.core.model.floatsOf
import covey.core.model.hex
import covey.core.model.sha256
import covey.core.wire.Task
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.security.MessageDigest

/** A bundle on this device, complete for one runtime. */
class Bundle(val folder: File, val manifest: Manifest, val digest: String) {
    /** The file of one role, `model` say. */
    fun path(target: String, role: String): File = File(
        folder,
        manifest.graphs[target]?.get(role) ?: throw BundleException("the bundle has no '$role' for $target: export it again"),
    )

    /** Version 0 of the adapter for this seed. */
    fun start(seed: Long): FloatArray {
        val stored = if (manifest.start.isEmpty()) FloatArray(0) else floatsOf(File(folder, manifest.start).readBytes())
        return manifest.layout.start(seed, stored)
    }
}

/** How much a bundle needs, for a person to agree to before anything large is downloaded. */
data class Cost(val model: String, val downloadBytes: Long, val memoryBytes: Long)

/**
 * Getting a bundle: the manifest first, then by digest only the files that this runtime needs. A file is written as
 * `NAME.part`, goes on from where it was after a cut, and gets its name once its digest is right.
 */
class Bundles(private val calls: Calls, private val http: Http, private val cache: File, private val target: String) {
    /** The manifest of the task's bundle and its bytes; refuses another bundle, layout, or a newer client's. */
    fun manifest(task: Task): Pair<Manifest, ByteArray> {
        val data = calls.manifest()
        if (sha256(data) != task.bundle) {
            throw BundleException(
                "the server's manifest is not the one of bundle ${task.bundle.take(12)} that its task names; " +
                    "something between changed it, or the server's bundle was replaced",
            ).because(Reason.BUNDLE_CHANGED)
        }
        val manifest = Manifest.fromBytes(data)
        if (manifest.layout.digest != task.layout) {
            throw BundleException("the bundle's layout is ${manifest.layout.digest.take(12)}, the task's is ${task.layout.take(12)}")
        }
        if (newer(manifest.minimumClient, CLIENT_VERSION)) {
            throw BundleException("the bundle needs version ${manifest.minimumClient} of the client, this is $CLIENT_VERSION: update the app")
                .because(Reason.BUNDLE_NEWER, manifest.minimumClient)
        }
        manifest.requireListed(target)
        return manifest to data
    }

    /** What is still to be downloaded, and what training needs. */
    fun cost(manifest: Manifest, task: Task): Cost {
        val folder = File(cache, task.bundle)
        val missing = manifest.filesFor(target).filter { (path, file) -> File(folder, path).length() != file.bytes }
        return Cost(manifest.model, missing.values.sumOf { it.bytes }, manifest.memoryBytes(target))
    }

    /** The bundle, every file's digest checked; [report] hears the bytes that are there and those in all. */
    fun fetch(manifest: Manifest, data: ByteArray, report: (Long, Long) -> Unit): Bundle {
        val folder = File(cache, sha256(data))
        if (!folder.isDirectory && !folder.mkdirs()) throw UsageException("$folder cannot be made: is there space left?").because(Reason.DISK, folder.name)
        File(folder, "manifest.json").writeBytes(data)
        val absent = manifest.filesFor(target).filterNot { (path, file) -> intact(File(folder, path), file) }
        val total = absent.values.sumOf { it.bytes }
        if (total > folder.usableSpace) {
            throw UsageException(
                "the model needs ${total / 1_000_000} MB, ${folder.usableSpace / 1_000_000} MB are free: free some space and try again",
            ).because(Reason.SPACE, total / 1_000_000, folder.usableSpace / 1_000_000)
        }
        var before = 0L
        for ((path, file) in absent) {
            fetchFile(file, File(folder, path)) { report(before + it, total) }
            before += file.bytes
        }
        return Bundle(folder, manifest, sha256(data))
    }

    private fun fetchFile(file: BundleFile, path: File, report: (Long) -> Unit) {
        path.parentFile?.mkdirs()
        val part = File(path.path + ".part")
        val resumed = part.isFile
        download(file, part, report)
        if (resumed && !intact(part, file)) { // what was there before was damaged: once more from the beginning
            part.delete()
            download(file, part, report)
        }
        if (!intact(part, file)) {
            part.delete()
            throw BundleException(
                "${path.name} came with another digest than the bundle's manifest states; it was thrown away: try again, " +
                    "and if it stays so, the server's bundle is damaged",
            ).because(Reason.BUNDLE_DIGEST, path.name)
        }
        RandomAccessFile(part, "rw").use { it.fd.sync() }
        if (!part.renameTo(path)) throw UsageException("${path.name} cannot be put in its place").because(Reason.DISK, path.name)
    }

    private fun download(file: BundleFile, part: File, report: (Long) -> Unit) {
        try {
            calls.network.retried {
                val first = if (part.isFile) part.length() else 0L
                if (first < file.bytes || !part.isFile) piecewise(file, part, first, report)
            }
        } catch (error: RefusedException) {
            throw BundleException("the server does not give the bundle's file ${part.name.removeSuffix(".part")}: ${error.sentence}")
        } catch (error: BundleException) {
            part.delete()
            throw error
        }
    }

    /** One try from byte [first] on. */
    private fun piecewise(file: BundleFile, part: File, first: Long, report: (Long) -> Unit) {
        RandomAccessFile(part, "rw").use { out ->
            if (file.bytes == 0L) return
            val range = if (first > 0) mapOf("Range" to "bytes=$first-") else emptyMap()
            val request = Request("GET", "/v1/blobs/${file.sha256}", kind = Calls.BUNDLE, headers = range)
            val refusal = http.stream(request) { answer, body ->
                val partial = answer.status == 206
                if (partial && !answer.header("content-range").startsWith("bytes $first-")) {
                    throw BundleException("the server answers with another part of the file than the one asked for")
                }
                val from = if (partial) first else 0L // a server that ignores the range starts over
                out.setLength(from)
                out.seek(from)
                copy(body, out, file, report)
            }
            if (refusal != null) throw calls.network.refused(refusal)
        }
    }

    private fun copy(body: InputStream, out: RandomAccessFile, file: BundleFile, report: (Long) -> Unit) {
        val piece = ByteArray(1 shl 16)
        while (true) {
            val got = body.read(piece)
            if (got < 0) break
            if (out.filePointer + got > file.bytes) {
                throw BundleException("the server sends more than the ${file.bytes} bytes that the manifest states for a file")
            }
            out.write(piece, 0, got)
            calls.network.traffic.add(Calls.BUNDLE, 0, got.toLong())
            report(out.filePointer)
        }
        if (out.filePointer < file.bytes) throw IOException("the file was cut")
    }

    companion object {
        /** Whether a file is there with the right bytes. */
        fun intact(path: File, file: BundleFile): Boolean = path.isFile && path.length() == file.bytes && digest(path) == file.sha256

        private fun digest(path: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val piece = ByteArray(1 shl 16)
            path.inputStream().use { stream ->
                while (true) {
                    val got = stream.read(piece)
                    if (got < 0) return hex(digest.digest())
                    digest.update(piece, 0, got)
                }
            }
        }

        /** Whether version [a] is newer than [b]; what is not a number counts as 0. */
        internal fun newer(a: String, b: String): Boolean {
            val numbers = { text: String -> text.split(".").map { it.toIntOrNull() ?: 0 } }
            val (x, y) = numbers(a) to numbers(b)
            val length = maxOf(x.size, y.size)
            for (i in 0 until length) {
                val difference = x.getOrElse(i) { 0 } - y.getOrElse(i) { 0 }
                if (difference != 0) return difference > 0
            }
            return false
        }
    }
}
