package covey.app

import android.content.Context
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.system.ErrnoException
import android.system.Os
import covey.core.client.Overview
import covey.core.client.StateFolder
import covey.core.train.decodeText
import java.io.ByteArrayOutputStream
import java.io.File
import java.util.Calendar

/** What the app keeps, all of it in its own folder: settings, the text, the client's state, the model. */
class Store(private val context: Context) {
    private val settings = context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    /** The server that was joined; empty for none. */
    var server: String
        get() = settings.getString("server", "").orEmpty()
        set(value) = settings.edit().putString("server", value).apply()

    /** The one-time code of the invitation, until it is used. */
    var code: String
        get() = settings.getString("code", "").orEmpty()
        set(value) = settings.edit().putString("code", value).apply()

    /** The bundle that the person agreed to download. */
    var agreed: String
        get() = settings.getString("agreed", "").orEmpty()
        set(value) = settings.edit().putString("agreed", value).apply()

    /** The rounds that the backup at the server knows of. */
    var backedUp: Int
        get() = settings.getInt("backed_up", -1)
        set(value) = settings.edit().putInt("backed_up", value).apply()

    /** Whether the recovery code is another phone's. */
    val recoveryTyped: Boolean get() = settings.getBoolean("recovery_typed", false)

    /** The recovery code, where there is one already. */
    val recoveryOrNull: String? get() = settings.getString("recovery", null)

    /** What opens this phone's backup: 100 random bits, made when they are first needed. */
    fun recovery(): String = recoveryOrNull ?: newCode().also { settings.edit().putString("recovery", it).apply() }

    /** The code of another phone, as it was typed; an empty one is none. */
    fun typeRecovery(text: String) {
        val code = text.uppercase().filter { it in CODE_LETTERS }.chunked(5).joinToString("-")
        if (code.isNotEmpty()) settings.edit().putString("recovery", code).putBoolean("recovery_typed", true).apply()
    }

    private fun newCode(): String {
        val random = java.security.SecureRandom()
        return List(20) { CODE_LETTERS[random.nextInt(CODE_LETTERS.length)] }.joinToString("").chunked(5).joinToString("-")
    }

    var paused: Boolean
        get() = settings.getBoolean("paused", false)
        set(value) = settings.edit().putBoolean("paused", value).apply()

    /** Bodies sent and received since midnight. */
    val bytesToday: Long get() = if (settings.getInt("day", -1) == today()) settings.getLong("bytes", 0) else 0

    /** Count bytes of today. */
    fun addBytes(count: Long) = settings.edit().putInt("day", today()).putLong("bytes", bytesToday + count).apply()

    /** What the screen showed last. */
    fun overview(): Overview {
        val file = File(context.filesDir, OVERVIEW)
        return try {
            Overview.fromBytes(file.readBytes())
        } catch (_: Exception) { // none yet, or of an older app: the screen begins anew
            Overview()
        }
    }

    fun keep(overview: Overview) {
        val beside = File(context.filesDir, "$OVERVIEW.new")
        beside.writeBytes(overview.toBytes())
        beside.renameTo(File(context.filesDir, OVERVIEW))
    }

    /** Where bundles are kept. The system does not clear this folder when space runs short, as it would the cache. */
    val bundles: File get() = File(context.filesDir, "bundles")

    /** The client's state, held for one slice at a time. */
    fun state(): StateFolder = StateFolder.open(File(context.filesDir, "state"), ::syncFolder)

    /** Whether there is text to learn from. */
    val hasText: Boolean get() = File(context.filesDir, TEXT).length() > 0

    /** The text, or null where it cannot be read any more. */
    fun text(): String? = File(context.filesDir, TEXT).takeIf { it.isFile }?.let { decodeText(it.readBytes()) }

    /** Keep notes that were pasted. They are copied into the app's folder, and go nowhere else. */
    fun keepText(text: String) = File(context.filesDir, TEXT).writeBytes(text.toByteArray())

    /** Copy the text of a file that the person picked; null where it holds none, or more than is taken. */
    fun copyText(uri: Uri): String? {
        val stream = context.contentResolver.openInputStream(uri) ?: return null
        val out = ByteArrayOutputStream()
        val piece = ByteArray(1 shl 16)
        stream.use {
            while (out.size() <= MAX_TEXT_MB shl 20) {
                val got = it.read(piece)
                if (got < 0) break
                out.write(piece, 0, got)
            }
        }
        if (out.size() > MAX_TEXT_MB shl 20) return null
        return decodeText(out.toByteArray())?.takeIf { it.isNotBlank() }?.also(::keepText)
    }

    /** Delete everything but the app itself. */
    fun deleteAll() {
        settings.edit().clear().commit()
        context.filesDir.listFiles()?.forEach { it.deleteRecursively() }
        context.cacheDir.listFiles()?.forEach { it.deleteRecursively() }
    }

    private fun today(): Int = Calendar.getInstance().let { 1000 * it.get(Calendar.YEAR) + it.get(Calendar.DAY_OF_YEAR) }

    companion object {
        /** The longest text that is taken. */
        const val MAX_TEXT_MB = 32
        private const val CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789" // none that look alike
        private const val TEXT = "text.txt"
        private const val OVERVIEW = "overview"

        /** Makes a rename durable; where the file system cannot, the rename is still atomic. */
        private fun syncFolder(folder: File) {
            try {
                ParcelFileDescriptor.open(folder, ParcelFileDescriptor.MODE_READ_ONLY).use { Os.fsync(it.fileDescriptor) }
            } catch (_: ErrnoException) {
            } catch (_: java.io.FileNotFoundException) {
            }
        }
    }
}
