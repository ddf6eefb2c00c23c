//! The words on the page, English and Chinese. "Suspected" and "notification"; never a diagnosis, never "normal".

export type Language = "en" | "zh";

const en = {
  title: "ichd station",
  unavailable: "AI NOT AVAILABLE",
  unavailable_do: "Read head CTs as if there were no software. Tell the engineer on call.",
  trouble_link: "No link from this page to the broker",
  trouble_denied: "The broker does not admit this station",
  trouble_replaced: "Another page has taken over this station's name",
  trouble_status: "{device} says: {detail}",
  trouble_heartbeat: "{device}: no heartbeat",
  trouble_proof: "{device}: proof of life overdue",
  trouble_receiver: "{device} takes no images: its receiver stands still",
  trouble_reader: "{device} reads no images: its reader stands still",
  trouble_disk: "{device} takes no images: its disk is full",
  trouble_stage: "{device} stands still ({detail})",
  trouble_alerts: "{device}: the broker refuses its alerts",
  trouble_ledger: "{device} cannot write down its results",
  state_unknown: "nothing heard",
  state_init: "starting", state_ready: "ready", state_degraded: "works, with concerns", state_blind: "does not work", state_maintenance: "maintenance",
  state_offline: "switched off", state_lost: "lost without a word",
  quiet_sound: "Silence this sound for 15 min",
  quieted: "Sound silenced, {age} left",
  connect_again: "Use this page",
  link_connecting: "Connecting", link_connected: "Linked", link_lost: "No link", link_denied: "Not admitted", link_replaced: "Taken over",
  proof: "Proof of life", proof_ago: "{age} ago", proof_none: "none yet", proof_overdue: "overdue", proof_off: "not scheduled",
  week: "Alerts right, 7 days", week_right: "{right} of {judged} ({percent} %)", week_none: "not said yet",
  count_waiting: "{n} waiting", count_taken: "{n} in hand",
  storm: "{n} came in a short time and sound as one; all are here. If they are many, look at the box too.",
  last_study: "Last study", sound: "Sound", sound_ok: "tested", sound_muted: "muted", sound_not: "not confirmed", sound_locked: "blocked",
  watching: "Watching",
  no_alerts: "No open alert", alerts_unknown: "Whether there are alerts is not known",
  no_alerts_note: "This says nothing about any patient. Alerts appear here by themselves.",
  suspected: "Suspected intracranial hemorrhage",
  technical: "Trouble with the box",
  technical_nobody_listening: "Nobody has received an alert", technical_expired_unacknowledged: "An alert expired and nobody had taken it",
  technical_proof_failed: "The proof of life failed", technical_model_refused: "The new model was refused, the old one reads on",
  technical_update_failed: "The update failed, the old program runs on", technical_disk_low: "The disk is nearly full",
  test: "Test",
  provisional: "Provisional: the scan is still arriving",
  final: "Complete series",
  withdrawn: "Withdrawn",
  withdrawn_note: "The complete series did not confirm it. The notification is taken back; the images still need a reader.",
  expired: "Expired", resolved: "Closed",
  priority: "Priority {n}", priority_1: "Urgent", priority_2: "Prompt",
  slices: "slices {a}–{b}, counted from the neck up", about_ml: "about {n} mL",
  side_left: "left", side_right: "right", side_both: "both sides", side_midline: "midline",
  epidural: "epidural", intraparenchymal: "intraparenchymal", intraventricular: "intraventricular",
  subarachnoid: "subarachnoid", subdural: "subdural",
  ack: "Acknowledge", ack_as: "as {user}", claim: "I'm looking (3 min)", release: "Stop looking", decline: "I can't",
  escalate: "Call more people", resolve: "Close", seen: "Seen",
  acknowledged_by: "Acknowledged by {user}, {station}", claimed_by: "{user} is looking, {station}; not yet acknowledged", looking: "{user} is looking, {station}",
  escalated: "Escalated, step {n}", next_in: "next person called in {age}", muted_until: "Muted until {time}",
  feedback: "Was it right?", right: "Right", wrong: "Wrong", unsure: "Unsure", feedback_said: "{user}: {value}",
  decline_why: "Why?", busy: "With another patient", not_mine: "Not my ward", other: "Another reason", back: "Back",
  close_why: "Close this alert?", close_yes: "Yes, close it",
  sending: "Sending…", no_answer: "No answer from the box. Try again.", not_sent: "Not sent: no link.",
  accepted: "The box has it", duplicate: "The box had it already", refused: "Refused: {message}",
  code_stale_rev: "the alert has changed, look again", code_unknown_alert: "the box does not know this alert",
  code_expired: "it came too late", code_not_allowed: "this station may not", code_bad_request: "not understood",
  code_closed: "it is closed already", code_taken: "somebody else has it",
  viewer: "This station only looks on.",
  enc_locked: "The patient is encrypted; this station has no key that fits.",
  location: "Location", patient: "Patient", picture: "Key slice, for orientation, not for reading",
  flags: "Input: {flags}",
  flag_missing_slices: "slices missing", flag_mixed_steps: "uneven steps", flag_overlap: "slices overlap", flag_tilted: "tilted",
  flag_lossy: "lossy compression", flag_contrast: "contrast", flag_conflicting_duplicate: "conflicting duplicate",
  flag_repeated_position: "repeated position", flag_large_gap: "a large gap", flag_partial_head: "not the whole head",
  flag_unread_slices: "some slices not read", flag_fewer_than_announced: "fewer images than announced",
  flag_outside_field: "brain beyond the field that is read", flag_unknown_kernel: "unknown kernel",
  unconfirmed: "The broker does not hold this alert any more; it may have been closed elsewhere.",
  earlier: "Closed or withdrawn",
  newest_rev: "rev {n}",
  shift: "Shift", start_shift: "Start shift", try_sound: "Try the sound", end_shift: "End shift", who: "Your name",
  who_note: "Stands on every acknowledgement.",
  start_note: "Plays a test tone. Turn the volume up.",
  heard: "Did you hear the tone?", heard_yes: "Yes, I heard it", heard_no: "No sound", again: "Play it again",
  sound_off: "This page cannot sound. Touch here to turn the sound on.",
  sound_unconfirmed: "Sound is not confirmed on this station. Start the shift again and listen for the tone.",
  muted_by: "No alert sounds until {time}: silenced by {user}",
  muted_by_work: "Maintenance by {user}: no alert sounds until {time}",
  misplaced: "Set up as {role}, enrolled as something else: open this station's own address",
  setup: "Set up this station", station_name: "Station name", station_name_note: "Lower-case letters, digits and hyphens; the name in its certificate.",
  role: "Role", role_note: "As enrolled: it decides which calls sound here.", ward: "Ward", language: "Language", key: "Keys for patient identity (optional)",
  key_note: "The site's privacy.jwks, or one k of it. Stays on this station.", password: "Broker password (optional)",
  password_note: "Only where the broker asks for one instead of a certificate.",
  save: "Save", bad_station: "1 to 32 lower-case letters, digits and hyphens", bad_key: "Neither a JWK Set nor a 256-bit key", needed: "Needed",
  role_nurse: "Nurse", role_charge_nurse: "Charge nurse", role_physician: "Physician", role_phone: "On-call phone", role_engineer: "Engineer", role_viewer: "Viewer",
  tab_station: "Station", tab_engineer: "Engineer",
  eng_link: "This page", eng_boxes: "Boxes", eng_dispositions: "Series", eng_stations: "Stations", eng_log: "Actions and answers",
  tone_urgent: "urgent", tone_alert: "alert", tone_technical: "trouble with the box", tone_withdrawn: "withdrawn", tone_unavailable: "AI not available",
  eng_none: "Nothing yet.", eng_reasons: "Reasons", eng_none_reasons: "none", eng_play: "Play the tones",
  eng_broker: "Broker", eng_since: "Linked for", eng_connections: "Connections", eng_messages: "Messages", eng_refused: "Refused documents",
  eng_version: "Version", eng_wake: "Screen kept awake", eng_time: "Decided", eng_study: "Study", eng_series: "Series",
  eng_disposition: "Disposition", eng_reason: "Reason", eng_slices: "Instances", eng_flags: "Flags", eng_model: "Model", eng_state: "State",
  eng_warnings: "Warnings", eng_ppv: "PPV of alerts, 7 days", eng_test: "Send a test alert", eng_ledger: "Ledger of",
  eng_refresh: "Ask again", eng_replay: "Replay", eng_equal: "the same bytes", eng_purged: "purged",
  eng_proved: "reached: {reached}, {s} s", eng_may_not: "Test, ledger and replay are for a station of role Engineer with a shift on.",
  reason_not_ct: "not a CT", reason_multi_frame: "multi-frame image without its geometry", reason_not_an_image: "no greyscale picture",
  reason_localizer: "localiser", reason_derived: "computed from another series", reason_no_geometry: "no geometry",
  reason_not_axial: "not axial", reason_same_position: "several images at one position", reason_too_few_slices: "too few slices",
  reason_too_many_slices: "too many slices", reason_too_thick: "slices too far apart", reason_bone_kernel: "sharp kernel",
  reason_not_chosen: "another series of the study was read", reason_not_head: "not a head", reason_no_brain_tissue: "no brain tissue",
  reason_undecodable: "the pixels could not be decoded", reason_blank_slice: "a blank slice", reason_crashed: "the reader crashed",
  reason_model_failed: "the model could not be run", reason_incomplete: "a part of the head was not read", reason_contrast: "a contrast agent was given",
  reason_outside_field: "brain lies beyond the field that is read",
  yes: "yes", no: "no",
  keys: "Keys: ↑ ↓ choose, A acknowledge, C I'm looking, D I can't, E call more people, R close, 1 2 3 right wrong unsure",
  disclaimer: "Notification of a suspected finding by software, not a diagnosis. Not a medical device.",
  elsewhere: "The station is open in another tab of this browser.", here: "Use this tab",
  no_config: "The box does not answer. Trying again.",
} as const;

export type Word = keyof typeof en;

const zh: Record<Word, string> = {
  title: "ichd 护士站",
  unavailable: "AI 不可用",
  unavailable_do: "请按没有软件辅助的流程阅片，并通知值班工程师。",
  trouble_link: "本页面与消息服务器的连接已断开",
  trouble_denied: "消息服务器拒绝本站点登录",
  trouble_replaced: "另一个页面占用了本站点的名称",
  trouble_status: "{device} 状态：{detail}",
  trouble_heartbeat: "{device}：心跳丢失",
  trouble_proof: "{device}：自检超时",
  trouble_receiver: "{device} 无法接收图像：接收程序停止响应",
  trouble_reader: "{device} 无法分析图像：分析程序停止响应",
  trouble_disk: "{device} 无法接收图像：磁盘已满",
  trouble_stage: "{device} 停止响应（{detail}）",
  trouble_alerts: "{device}：消息服务器拒收其提醒",
  trouble_ledger: "{device} 无法记录结果",
  state_unknown: "尚未收到消息",
  state_init: "正在启动", state_ready: "就绪", state_degraded: "运行中，有异常", state_blind: "不能工作", state_maintenance: "维护中",
  state_offline: "已关机", state_lost: "失去联系",
  quiet_sound: "此提示音静音 15 分钟",
  quieted: "提示音已静音，剩余 {age}",
  connect_again: "使用本页面",
  link_connecting: "正在连接", link_connected: "已连接", link_lost: "未连接", link_denied: "被拒绝", link_replaced: "被占用",
  proof: "上次自检", proof_ago: "{age}前", proof_none: "尚无", proof_overdue: "超时", proof_off: "未设定",
  week: "7 天内提醒正确", week_right: "{right}/{judged}（{percent}%）", week_none: "尚无评价",
  count_waiting: "{n} 条待处理", count_taken: "{n} 条已有人处理",
  storm: "短时间内出现 {n} 条，合并提示音，全部在此。如数量过多，请同时检查设备。",
  last_study: "上次检查", sound: "声音", sound_ok: "已测试", sound_muted: "已静音", sound_not: "未确认", sound_locked: "被阻止",
  watching: "值守中",
  no_alerts: "没有未处理的提醒", alerts_unknown: "目前无法得知是否有提醒",
  no_alerts_note: "这不代表任何患者的检查结果。有提醒时会自动显示。",
  suspected: "疑似颅内出血",
  technical: "设备故障",
  technical_nobody_listening: "提醒无人接收", technical_expired_unacknowledged: "有提醒已过期且无人处理",
  technical_proof_failed: "自检失败", technical_model_refused: "新模型被拒绝，继续使用原模型",
  technical_update_failed: "升级失败，继续运行原程序", technical_disk_low: "磁盘空间即将用尽",
  test: "测试",
  provisional: "初步提醒：图像仍在传输",
  final: "完整序列",
  withdrawn: "已撤回",
  withdrawn_note: "完整序列未能证实，提醒已撤回；图像仍需医生阅片。",
  expired: "已过期", resolved: "已关闭",
  priority: "优先级 {n}", priority_1: "紧急", priority_2: "尽快",
  slices: "层面 {a}–{b}（自下而上）", about_ml: "约 {n} mL",
  side_left: "左侧", side_right: "右侧", side_both: "双侧", side_midline: "中线",
  epidural: "硬膜外", intraparenchymal: "脑实质内", intraventricular: "脑室内",
  subarachnoid: "蛛网膜下腔", subdural: "硬膜下",
  ack: "确认收到", ack_as: "确认人：{user}", claim: "我先去看（3 分钟）", release: "不再查看", decline: "无法处理",
  escalate: "呼叫更多人", resolve: "关闭", seen: "已阅",
  acknowledged_by: "已确认：{user}（{station}）", claimed_by: "{user}（{station}）正在查看，尚未确认", looking: "{user}（{station}）正在查看",
  escalated: "已升级，第 {n} 级", next_in: "{age}后呼叫下一位", muted_until: "静音至 {time}",
  feedback: "提醒是否正确？", right: "正确", wrong: "错误", unsure: "不确定", feedback_said: "{user}：{value}",
  decline_why: "原因？", busy: "正在照顾其他患者", not_mine: "不属于本病区", other: "其他原因", back: "返回",
  close_why: "关闭此提醒？", close_yes: "是，关闭",
  sending: "正在发送…", no_answer: "设备没有应答，请重试。", not_sent: "未发送：没有连接。",
  accepted: "设备已收到", duplicate: "设备此前已收到", refused: "被拒绝：{message}",
  code_stale_rev: "提醒已更新，请重新查看", code_unknown_alert: "设备没有此提醒",
  code_expired: "已超时", code_not_allowed: "本站点无此权限", code_bad_request: "无法识别",
  code_closed: "已经关闭", code_taken: "已有他人处理",
  viewer: "本站点仅供查看。",
  enc_locked: "患者信息已加密；本站点没有匹配的密钥。",
  location: "位置", patient: "患者", picture: "关键层面，仅供定位，不可用于阅片",
  flags: "输入提示：{flags}",
  flag_missing_slices: "缺少层面", flag_mixed_steps: "层间距不一致", flag_overlap: "层面重叠", flag_tilted: "扫描倾斜",
  flag_lossy: "有损压缩", flag_contrast: "增强扫描", flag_conflicting_duplicate: "重复图像内容不一致",
  flag_repeated_position: "同一位置重复", flag_large_gap: "层面间隔过大", flag_partial_head: "头部未完整覆盖",
  flag_unread_slices: "部分层面未分析", flag_fewer_than_announced: "图像少于预告数量",
  flag_outside_field: "部分脑组织在分析视野之外", flag_unknown_kernel: "未知重建核",
  unconfirmed: "消息服务器上已没有此提醒；可能已在别处关闭。",
  earlier: "已关闭或撤回",
  newest_rev: "版本 {n}",
  shift: "班次", start_shift: "开始值班", try_sound: "测试声音", end_shift: "结束值班", who: "您的姓名",
  who_note: "将显示在每次确认上。",
  start_note: "将播放测试音，请调高音量。",
  heard: "听到测试音了吗？", heard_yes: "听到了", heard_no: "没有声音", again: "再播放一次",
  sound_off: "本页面无法发声。请点按此处打开声音。",
  sound_unconfirmed: "本站点的声音未确认。请重新开始值班并确认听到测试音。",
  muted_by: "{user} 已设静音：{time} 前提醒不发声",
  muted_by_work: "{user} 正在维护：{time} 前提醒不发声",
  misplaced: "设为“{role}”，与登记的角色不符：请打开本站点的登记地址",
  setup: "设置本站点", station_name: "站点名称", station_name_note: "小写字母、数字和连字符；与证书中的名称一致。",
  role: "角色", role_note: "须与登记一致：决定哪些呼叫在此发声。", ward: "病区", language: "语言", key: "患者身份信息的密钥（可选）",
  key_note: "本院的 privacy.jwks，或其中一个 k。仅保存在本站点。", password: "消息服务器密码（可选）",
  password_note: "仅当服务器要求密码而非证书时填写。",
  save: "保存", bad_station: "1 到 32 个小写字母、数字和连字符", bad_key: "既不是 JWK Set，也不是 256 位密钥", needed: "必填",
  role_nurse: "护士", role_charge_nurse: "护士长", role_physician: "医生", role_phone: "值班手机", role_engineer: "工程师", role_viewer: "查看者",
  tab_station: "护士站", tab_engineer: "工程师",
  eng_link: "本页面", eng_boxes: "设备", eng_dispositions: "序列", eng_stations: "站点", eng_log: "操作与应答",
  tone_urgent: "紧急", tone_alert: "提醒", tone_technical: "设备故障", tone_withdrawn: "撤回", tone_unavailable: "AI 不可用",
  eng_none: "暂无。", eng_reasons: "原因", eng_none_reasons: "无", eng_play: "播放各种提示音",
  eng_broker: "消息服务器", eng_since: "已连接", eng_connections: "连接次数", eng_messages: "消息", eng_refused: "被拒文档",
  eng_version: "版本", eng_wake: "屏幕常亮", eng_time: "判定时间", eng_study: "检查", eng_series: "序列",
  eng_disposition: "结论", eng_reason: "原因", eng_slices: "图像数", eng_flags: "标记", eng_model: "模型", eng_state: "状态",
  eng_warnings: "预警", eng_ppv: "提醒的 PPV（7 天）", eng_test: "发送测试提醒", eng_ledger: "判读记录：",
  eng_refresh: "重新查询", eng_replay: "重放", eng_equal: "字节一致", eng_purged: "已清除",
  eng_proved: "到达：{reached}，{s} 秒", eng_may_not: "测试、记录与重放仅限角色为工程师且已开始值班的站点。",
  reason_not_ct: "不是 CT", reason_multi_frame: "多帧图像缺少几何信息", reason_not_an_image: "不是灰度图像",
  reason_localizer: "定位像", reason_derived: "由其他序列重建", reason_no_geometry: "缺少几何信息",
  reason_not_axial: "不是横断面", reason_same_position: "同一位置有多幅图像", reason_too_few_slices: "层面过少",
  reason_too_many_slices: "层面过多", reason_too_thick: "层间距过大", reason_bone_kernel: "骨算法重建",
  reason_not_chosen: "已分析同一检查的另一序列", reason_not_head: "不是头部", reason_no_brain_tissue: "没有脑组织",
  reason_undecodable: "像素无法解码", reason_blank_slice: "有空白层面", reason_crashed: "分析程序崩溃",
  reason_model_failed: "模型无法运行", reason_incomplete: "头部有一部分未分析", reason_contrast: "增强扫描",
  reason_outside_field: "部分脑组织在分析视野之外",
  yes: "是", no: "否",
  keys: "按键：↑ ↓ 选择，A 确认，C 我先去看，D 无法处理，E 呼叫更多人，R 关闭，1 2 3 正确 错误 不确定",
  disclaimer: "软件给出的疑似发现提醒，不是诊断。不是医疗器械。",
  elsewhere: "护士站已在此浏览器的另一个标签页中打开。", here: "使用本标签页",
  no_config: "设备没有应答，正在重试。",
};

const LANGUAGES: Record<Language, Record<Word, string>> = { en, zh };
let current: Language = navigator.language.startsWith("zh") ? "zh" : "en";

export const language = (): Language => current;

export function speak(language: Language): void {
  current = language;
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

/** The word in the language of the station, with `{names}` filled in. */
export function t(word: Word, values: Record<string, string | number> = {}): string {
  return LANGUAGES[current][word].replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** A word for a code of the wire, or the code itself: a newer box may say what this page has no word for. */
export function word(prefix: string, code: string): string {
  const key = `${prefix}${code}`;
  return key in en ? t(key as Word) : code.replaceAll("_", " ");
}

/** What the daemon writes on alerts, in English. */
const WRITTEN: readonly [RegExp, string][] = [
  [/^the complete series could not be analysed: (\w+)$/, "完整序列无法分析：$1"],
  [/^withdrawn: the final verdict is not suspected$/, "已撤回：最终结果不支持"],
  [/^suspected again after it was withdrawn$/, "撤回后再次疑似"],
  [/^more urgent than when it was taken$/, "比有人处理时更紧急"],
  [/^declined by (.*)$/, "无法处理：$1"],
  [/^more people asked for by (.*)$/, "请求呼叫更多人：$1"],
  [/^expired: nobody acknowledged it$/, "已过期：无人确认"],
  [/^closed by time$/, "到时自动关闭"],
  [/^resolved: (.*)$/, "已关闭：$1"],
  [/^no station that was called has shown alert (\S+) after (\d+) s$/, "提醒 $1 在 $2 秒后仍未在任何被呼叫的站点显示"],
  [/^alert (\S+) expired without an acknowledgement$/, "提醒 $1 已过期，无人确认"],
  [/^studies are refused \(A700\): (\d+) MB are free$/, "拒收检查（A700）：剩余 $1 MB"],
  // What follows the colon is for who repairs the box.
  [/^the chain is broken: (.*)$/, "自检链路中断：$1"],
  [/^update failed: (.*)$/, "升级失败：$1"],
];

const UNREAD = /^(the complete series could not be analysed: )(\w+)$/;

/** Says that the complete series could not be analysed. */
export const isUnread = (text: string | undefined): boolean => UNREAD.test(text ?? "");

/** An addendum or the text of trouble in the language of the station; in English where it is none of the known ones. */
export function written(text: string): string {
  const unread = UNREAD.exec(text);
  if (current === "en") return unread ? `${unread[1]}${word("reason_", unread[2]!)}` : text;
  const known = WRITTEN.find(([english]) => english.test(text));
  if (!known) return text;
  const said = text.replace(known[0], known[1]);
  return unread ? said.replace(unread[2]!, word("reason_", unread[2]!)) : said;
}

/** "45 s", "12 min", "3 h 05", "2 d". */
export function age(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  const zh = current === "zh";
  if (s < 60) return zh ? `${s} 秒` : `${s} s`;
  if (s < 3600) return zh ? `${Math.floor(s / 60)} 分钟` : `${Math.floor(s / 60)} min`;
  const minutes = String(Math.floor(s / 60) % 60).padStart(2, "0");
  if (s < 86_400) return zh ? `${Math.floor(s / 3600)} 小时 ${minutes} 分` : `${Math.floor(s / 3600)} h ${minutes}`;
  return zh ? `${Math.floor(s / 86_400)} 天` : `${Math.floor(s / 86_400)} d`;
}
